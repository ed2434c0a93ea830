"""The one attention call: a table of backends, each of which takes a case or says why not.

attention(q, k, v, Mask(causal=True))                     # "auto": the first backend that takes it
attention(q, k, v, mask, backend="xla")                   # this one, or an error with its reason
"""

import logging
from collections.abc import Callable
from functools import cache
from typing import NamedTuple

import jax
from jaxtyping import Array, Float

from llama_jax.errors import nearest
from llama_jax.kernels import xla
from llama_jax.kernels.mask import Mask
from llama_jax.kernels.target import platform

log = logging.getLogger(__name__)

# Below this many scores a head the dense form is faster and its memory is no concern (1024 x 1024).
DENSE_SCORES = 1 << 20
LEAST_TRIANGLE = 256  # tokens; below, eight small products cost more than one


class Case(NamedTuple):
    """What a backend may look at before it takes a call: shapes, types and structure, no values."""

    platform: str
    q: jax.ShapeDtypeStruct
    k: jax.ShapeDtypeStruct
    mask: Mask
    bias: bool
    softcap: float | None


class Backend(NamedTuple):
    """A way to compute attention.

    Attributes:
      run: computes it.
      why_not: None for a case that it can take, else the reason why not.
      worse: None for a case in which "auto" should take it, else what speaks for another.
    """

    run: Callable[..., jax.Array]
    why_not: Callable[[Case], str | None] = lambda case: None
    worse: Callable[[Case], str | None] = lambda case: None


def _no_bias(case: Case) -> str | None:
    return "an additive bias is not cut into chunks" if case.bias else None


def _few_scores(case: Case) -> str | None:
    T, S = case.q.shape[1], case.k.shape[1]
    if T * S > DENSE_SCORES:
        return None
    return f"{T} x {S} scores are few enough for the dense form"


def _no_triangle(case: Case) -> str | None:
    mask, T, S = case.mask, case.q.shape[1], case.k.shape[1]
    if case.bias:
        return "an additive bias is not cut into blocks"
    if not mask.causal or mask.prefix is not None or mask.parts:
        return "the mask is not causal throughout"
    if T != S or mask.q_positions is not None or mask.kv_positions is not None:
        return "queries and keys are not the same sequence"
    return None


def _small_triangle(case: Case) -> str | None:
    T = case.q.shape[1]
    if T < LEAST_TRIANGLE:
        return f"{T} tokens are too few to leave scores out"
    return None if T * T <= DENSE_SCORES else f"{T} x {T} scores need chunks"


# In the order in which "auto" asks. Pallas kernels for TPU and GPU are further rows of this table.
BACKENDS: dict[str, Backend] = {
    "xla_triangle": Backend(xla.triangle, _no_triangle, _small_triangle),
    "xla_chunked": Backend(xla.chunked, _no_bias, _few_scores),
    "xla": Backend(xla.dense),
}


def attention(
    q: Float[Array, "B T N H"],
    k: Float[Array, "B S K H"],
    v: Float[Array, "B S K H"],
    mask: Mask | None = None,
    *,
    bias: Float[Array, "N T S"] | None = None,
    scale: float | None = None,
    softcap: float | None = None,
    backend: str = "auto",
) -> Float[Array, "B T N H"]:
    """Attention of q over k and v under a mask; queries that see no key give zeros.

    Args:
      q: queries.
      k: keys; N is a multiple of K (grouped heads).
      v: values.
      mask: who sees whom; None shows all.
      bias: added to the scaled scores (relative position biases).
      scale: multiplies q k'; 1/sqrt(H) by default.
      softcap: caps scores by softcap * tanh(scores / softcap).
      backend: "auto" or a name of `BACKENDS`.

    Raises:
      ValueError: shapes or types that do not fit, or a named backend that refuses.
    """
    mask = Mask() if mask is None else mask
    _check(q, k, v, mask)
    case = Case(
        platform(),
        jax.ShapeDtypeStruct(q.shape, q.dtype),
        jax.ShapeDtypeStruct(k.shape, k.dtype),
        mask,
        bias is not None,
        softcap,
    )
    name = choose(case, backend)
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    return BACKENDS[name].run(q, k, v, mask, bias=bias, scale=scale, softcap=softcap)


def choose(case: Case, backend: str = "auto") -> str:
    """The name of the backend that takes a case; logs the choice and the refusals once a shape."""
    if backend == "auto":
        reasons = []
        for name, row in BACKENDS.items():
            reason = row.why_not(case) or row.worse(case)
            if reason is None:
                _log_once(name, case.platform, case.q.shape, case.k.shape, "; ".join(reasons))
                return name
            reasons.append(f"{name}: {reason}")
        raise ValueError("no attention backend takes this case: " + "; ".join(reasons))
    if backend not in BACKENDS:
        known = ", ".join(BACKENDS)
        raise ValueError(
            f"unknown attention backend {backend!r}; there are auto, {known}."
            + nearest(backend, BACKENDS)
        )
    if reason := BACKENDS[backend].why_not(case):
        raise ValueError(f"attention backend {backend!r}: {reason}")
    return backend


@cache
def _log_once(name: str, where: str, q: tuple, k: tuple, reasons: str) -> None:
    log.info("attention q%s k%s on %s: %s%s", q, k, where, name, f" ({reasons})" if reasons else "")


def _check(q, k, v, mask: Mask) -> None:
    shapes = f"q {q.shape}, k {k.shape}, v {v.shape}"
    if q.ndim != 4 or k.ndim != 4 or k.shape != v.shape:
        raise ValueError(f"{shapes}: expected q [B,T,N,H], k and v [B,S,K,H]")
    if q.shape[0] != k.shape[0] or q.shape[3] != k.shape[3]:
        raise ValueError(f"{shapes}: batch and head dim of queries and keys must be equal")
    if q.shape[2] % k.shape[2]:
        raise ValueError(
            f"{shapes}: {q.shape[2]} query heads are not a multiple of {k.shape[2]} key heads"
        )
    if not q.dtype == k.dtype == v.dtype:
        raise ValueError(f"q, k, v are {q.dtype}, {k.dtype}, {v.dtype}; cast them to one type")
    if mask.parts and sum(mask.parts) != k.shape[1]:
        raise ValueError(f"mask parts {mask.parts} do not add up to the {k.shape[1]} keys")
    if not mask.local and mask.q_positions is not None:
        raise ValueError(
            "positions without a causal, window or chunk mask have no effect; drop them or set "
            "causal"
        )
    B, T, S = q.shape[0], q.shape[1], k.shape[1]
    for name, length in (
        ("q_positions", T),
        ("q_segments", T),
        ("kv_positions", S),
        ("kv_segments", S),
        ("kv_valid", S),
    ):
        data = getattr(mask, name)
        if data is not None and (data.shape[0] not in (1, B) or data.shape[1:] != (length,)):
            raise ValueError(f"mask {name} has shape {data.shape}, expected {(B, length)}")
    if mask.allow is not None and (
        mask.allow.shape[0] not in (1, B) or mask.allow.shape[1:] != (T, S)
    ):
        raise ValueError(f"mask allow has shape {mask.allow.shape}, expected {(B, T, S)}")
