"""The one attention call: a table of backends, each of which takes a case or says why not.

attention(q, k, v, Mask(causal=True))                     # "auto": the first backend that takes it
attention(q, k, v, mask, backend="xla")                   # this one, or an error with its reason
"""

import functools
import importlib
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from llama_jax.errors import UserError
from llama_jax.kernels import flop_count
from llama_jax.kernels.attention import arguments, flash, reference, ring, sharded
from llama_jax.kernels.attention.flash import Kernel, Summed
from llama_jax.kernels.attention.mask import Mask
from llama_jax.kernels.backends import Backend, choose
from llama_jax.kernels.target import chip, platform

# Below this many scores a head all at once is as fast as chunks, or faster (128 x 128).
DENSE_SCORES = 1 << 14
MOST_NEW = 16  # queries that decode attention is for: a token, or some that were guessed
LEAST_CACHE = 512  # keys; fewer are not worth a split or a walk over blocks


class Case(NamedTuple):
    """What a backend may look at before it takes a call: shapes, types and structure, no values.

    Attributes:
      platform: what it will run on: "cpu", "gpu", "tpu".
      q: [B, T, N, H].
      k: [B, S, K, H]; v is alike.
      mask: a mask of whose arrays only the shapes are looked at.
      bias: whether one is added to the scores.
      softcap: bound of the scores, if there is one.
      chip: the kind of device, e.g. "TPU v5e", "NVIDIA H100 80GB HBM3".
      context: devices over which the sequence is split.
    """

    platform: str
    q: jax.ShapeDtypeStruct
    k: jax.ShapeDtypeStruct
    mask: Mask
    bias: bool
    softcap: float | None
    chip: str = ""
    context: int = 1

    def __str__(self) -> str:
        kind = np.dtype(self.q.dtype).name
        return f"q{list(self.q.shape)} kv{list(self.k.shape)} {kind}"


def _no_chunks(case: Case) -> str | None:
    if case.bias:
        return "an additive bias is not cut into chunks"
    if case.mask.parts:
        return "keys that are summed apart are not cut into chunks"
    return None


def _few_scores(case: Case) -> str | None:
    T, S = case.q.shape[1], case.k.shape[1]
    if T > 1 and T * S >= DENSE_SCORES:
        return None
    return f"{T} x {S} scores are few enough for the dense form"


def _not_decoding(case: Case) -> str | None:
    T, S = case.q.shape[1], case.k.shape[1]
    if T > MOST_NEW:
        return f"{T} queries are more than the {MOST_NEW} of a step of decoding"
    return None if S >= LEAST_CACHE else f"{S} keys are read at once"


def _no_ring(case: Case) -> str | None:
    T, S = case.q.shape[1], case.k.shape[1]
    if case.context == 1:
        return "the sequence is not split over devices"
    if reason := _no_chunks(case):
        return reason
    dealt = case.mask.causal and T == S and case.mask.allow is None
    parts = case.context * (2 if dealt else 1)
    if T % parts or S % parts:
        return f"{T} queries and {S} keys are not multiples of {parts}"
    return None


def _around(q, k, v, mask: Mask, *, bias: None, scale: float, softcap: float | None) -> Summed:
    """A ring, each step by the first kernel that takes the part of one device."""
    del bias  # refused by the table
    size = ring.axis_of_sequence()[1]
    one = case_of(q, k, mask, False, softcap)
    part = one._replace(
        q=jax.ShapeDtypeStruct((q.shape[0], q.shape[1] // size, *q.shape[2:]), q.dtype),
        k=jax.ShapeDtypeStruct((k.shape[0], k.shape[1] // size, *k.shape[2:]), k.dtype),
        context=1,
    )
    name = choose("ring step", STEPS, part)
    return ring.attend(kernel(name), q, k, v, mask, scale=scale, softcap=softcap)


# The flash kernels: module and name. Imported when a platform asks for them.
KERNELS: dict[str, tuple[str, str]] = {
    "mosaic_gpu": ("mosaic_gpu", "HOPPER"),
    "pallas_gpu_decode": ("triton_decode", "DECODE"),
    "pallas_gpu": ("triton", "GPU"),
    "pallas_tpu_decode": ("mosaic_tpu_decode", "TPU_DECODE"),
    "pallas_tpu": ("mosaic_tpu", "TPU"),
    "xla_decode": ("xla_decode", "DECODE"),
    "xla_chunked": ("xla_chunked", "CHUNKED"),
}

# Those that are tried where they run; what XLA compiles of its own operations is not.
PALLAS = tuple(name for name in KERNELS if not name.startswith("xla"))
TRITON = ("pallas_gpu_decode", "pallas_gpu")  # jax says that it will drop what compiles them


def _module(name: str) -> Any:
    return importlib.import_module(f"llama_jax.kernels.attention.{KERNELS[name][0]}")


def kernel(name: str) -> Kernel:
    """The flash kernel of a backend."""
    return getattr(_module(name), KERNELS[name][1])


def _alone(name: str, q, k, v, mask: Mask, **named: Any) -> Summed:
    """A kernel that the partitioner cannot look into: every device runs it on its own part."""
    return sharded.attend(kernel(name), q, k, v, mask, **named)


def _inside(
    name: str, q, k, v, mask: Mask, *, bias: None, scale: float, softcap: float | None
) -> Summed:
    """A form in XLA: the partitioner can look into it, so it needs no `shard_map`."""
    del bias  # refused by the table
    return flash.attend(kernel(name), q, k, v, mask, scale=scale, softcap=softcap)


def _proved(name: str, case: Case) -> str | None:
    # By name, for it computes with the kernels above.
    proof = importlib.import_module("llama_jax.kernels.attention.proof")
    return proof.verdict(name, np.dtype(case.q.dtype).name)


def _gone(name: str) -> str | None:
    """Why a kernel's compiler is not in the installed jax; None if it is."""
    if name not in TRITON:
        return None
    # Here, for it imports what only a GPU needs.
    return importlib.import_module("llama_jax.kernels.releases").without_triton()


def _passed(name: str, case: Case) -> str | None:
    """The same as a reason to take the next, so that it counts as no fallback."""
    return _gone(name) if case.platform == "gpu" else None


def _pallas(name: str, platform: str, worse: Any = _few_scores) -> Backend:
    return Backend(
        functools.partial(_alone, name),
        (platform,),
        lambda case: _gone(name) or _module(name).why_not(case),
        lambda case: _passed(name, case) or worse(case),
        functools.partial(_proved, name),
    )


# In the order in which "auto" asks.
BACKENDS: dict[str, Backend] = {
    "ring": Backend(_around, why_not=_no_ring),
    "pallas_gpu_decode": _pallas("pallas_gpu_decode", "gpu", _not_decoding),
    "xla_decode": Backend(
        functools.partial(_inside, "xla_decode"), ("gpu",), _no_chunks, _not_decoding
    ),
    "mosaic_gpu": _pallas("mosaic_gpu", "gpu"),
    "pallas_gpu": _pallas("pallas_gpu", "gpu"),
    "pallas_tpu_decode": _pallas("pallas_tpu_decode", "tpu", _not_decoding),
    "pallas_tpu": _pallas("pallas_tpu", "tpu"),
    "xla_chunked": Backend(
        functools.partial(_inside, "xla_chunked"), why_not=_no_chunks, worse=_few_scores
    ),
    "xla": Backend(reference.dense),
}
# What may compute a step of a ring, however few its scores.
STEPS: dict[str, Backend] = {
    name: Backend(row.run, row.platforms, row.why_not, functools.partial(_passed, name), row.proof)
    for name, row in BACKENDS.items()
    if name in KERNELS and not name.endswith("decode")
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
    strict: bool = False,
) -> Float[Array, "B T N H"]:
    """Attention of q over k and v under a mask; queries that see no key give zeros.

    Backends, in the order in which "auto" asks:

    | name | what | where |
    |---|---|---|
    | `ring` | a sequence split over devices; each step by one of the kernels below | all |
    | `pallas_gpu_decode` | few queries, a long cache split over programs (Triton) | GPU |
    | `xla_decode` | few queries, a long cache in runs, in XLA: where jax has no Triton | GPU |
    | `mosaic_gpu` | flash attention with wgmma and asynchronous copies | Hopper |
    | `pallas_gpu` | flash attention (Triton) | GPU |
    | `pallas_tpu_decode` | few queries against a long cache | TPU |
    | `pallas_tpu` | flash attention | TPU |
    | `xla_chunked` | some queries at a time, in XLA; memory linear in T | all |
    | `xla` | all scores at once, in XLA; takes every case | all |

    Every choice leaves a receipt: which backend computes the call and why those before it do not
    (`llama_jax.kernels.backends.recording`). Where the platform has a kernel of its own and that
    refuses, it is a fallback: a warning is logged, and with `strict` it is an error.

    Args:
      q: queries.
      k: keys; N is a multiple of K (grouped heads).
      v: values.
      mask: who sees whom; None shows all.
      bias: added to the scaled scores (relative position biases).
      scale: multiplies q k'; 1/sqrt(H) by default.
      softcap: caps scores by softcap * tanh(scores / softcap).
      backend: "auto" or a name of the table.
      strict: "auto" raises rather than fall back.

    Raises:
      UserError: shapes or types that do not fit, an unknown backend, a named one that refuses, or
        a fallback where none is wanted.
    """
    return attention_with_lse(
        q, k, v, mask, bias=bias, scale=scale, softcap=softcap, backend=backend, strict=strict
    )[0]


def attention_with_lse(
    q: Float[Array, "B T N H"],
    k: Float[Array, "B S K H"],
    v: Float[Array, "B S K H"],
    mask: Mask | None = None,
    *,
    bias: Float[Array, "N T S"] | None = None,
    scale: float | None = None,
    softcap: float | None = None,
    backend: str = "auto",
    strict: bool = False,
) -> Summed:
    """See `attention`; also the logarithm of each query's sum of exp(scores), float32.

    -inf where a query sees no key. `flash.merge` joins calls over several sets of keys to one
    softmax over all of them.
    """
    mask = Mask() if mask is None else mask
    numbers = {"scale": scale, "softcap": softcap}
    arguments.check({"q": q, "k": k, "v": v, "bias": bias}, mask, numbers, backend)
    _check(q, k, v, mask, softcap)
    if flop_count.on():
        return flop_count.attention(q, k, v, mask)
    case = case_of(q, k, mask, bias is not None, softcap)
    name = choose("attention", BACKENDS, case, backend, strict)
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    return BACKENDS[name].run(q, k, v, mask, bias=bias, scale=scale, softcap=softcap)


def case_of(q: Any, k: Any, mask: Mask, bias: bool, softcap: float | None) -> Case:
    """The case of a call, on the mesh and the platform that it is traced for."""
    shapes = [jax.ShapeDtypeStruct(x.shape, x.dtype) for x in (q, k)]
    context = ring.axis_of_sequence()[1]
    return Case(platform(), shapes[0], shapes[1], mask, bias, softcap, chip(), context)


def _check(q, k, v, mask: Mask, softcap: float | None) -> None:
    shapes = f"q {q.shape}, k {k.shape}, v {v.shape}"
    if q.ndim != 4 or k.ndim != 4 or k.shape != v.shape:
        raise UserError(f"{shapes}: expected q [B,T,N,H], k and v [B,S,K,H]")
    if q.shape[0] != k.shape[0] or q.shape[3] != k.shape[3]:
        raise UserError(f"{shapes}: batch and head dim of queries and keys must be equal")
    if q.shape[2] % k.shape[2]:
        raise UserError(
            f"{shapes}: {q.shape[2]} query heads are not a multiple of {k.shape[2]} key heads"
        )
    if not q.dtype == k.dtype == v.dtype:
        raise UserError(f"q, k, v are {q.dtype}, {k.dtype}, {v.dtype}; cast them to one type")
    if not jnp.issubdtype(q.dtype, jnp.floating):
        raise UserError(f"q, k, v are {q.dtype}; cast them to float32 or bfloat16")
    if softcap is not None and softcap <= 0:
        raise UserError(f"softcap={softcap} caps nothing; use a positive one, or None")
    _check_mask(mask, q.shape[0], q.shape[1], k.shape[1])


def _check_mask(mask: Mask, B: int, T: int, S: int) -> None:
    if mask.parts and sum(mask.parts) != S:
        raise UserError(f"mask parts {mask.parts} do not add up to the {S} keys")
    if not mask.local and (mask.q_positions is not None or mask.kv_positions is not None):
        raise UserError(
            "positions without a causal, window or chunk mask have no effect; drop them or set "
            "causal"
        )
    if mask.prefix is not None and not mask.causal:
        raise UserError("a prefix without a causal mask has no effect; drop it or set causal")
    wanted = {
        "prefix": ((), jnp.integer),
        "q_positions": ((T,), jnp.integer),
        "q_segments": ((T,), jnp.integer),
        "kv_positions": ((S,), jnp.integer),
        "kv_segments": ((S,), jnp.integer),
        "kv_valid": ((S,), jnp.bool),
        "allow": ((T, S), jnp.bool),
    }
    for name, (row, kind) in wanted.items():
        data = getattr(mask, name)
        if data is None or isinstance(data, int):
            continue
        if len(data.shape) == 0 or data.shape[0] not in (1, B) or data.shape[1:] != row:
            raise UserError(f"mask {name} has shape {data.shape}, expected {(B, *row)}")
        if not jnp.issubdtype(data.dtype, kind):
            raise UserError(f"mask {name} is {data.dtype}, expected {kind.__name__}")
