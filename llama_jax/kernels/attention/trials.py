"""Small cases on which a kernel is tried where it runs, against the dense form in float32.

Each is longer than the kernels' rings: of three blocks of keys on a TPU (1024, for decoding 4096)
and of many on a GPU, so that every slot is filled again, and every barrier waited for. Lengths are
ragged, and heads are grouped. Twenty runs must give the same bits: what moves is a race.
"""

import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from llama_jax.kernels.attention import api, flash, reference
from llama_jax.kernels.attention.flash import Kernel
from llama_jax.kernels.attention.mask import Mask

RESULTS = ("out", "lse", "dq", "dk", "dv")
# Of the largest magnitude of each result. Probabilities, results and gradients are rounded to
# bfloat16, 4e-3 each. One block of 64 keys that is read too early shows as 6e-2 in every trial.
BOUND = 2e-2
REPEATS = 20
host: Any = np  # masks are described while something else is traced, which arrays of jax would join


@dataclass(frozen=True)
class Trial:
    """One call in bfloat16: shapes, a mask made of B, T and S, and the scores' standard deviation.

    With 4 a query looks at a few keys, so that a wrong block shows in rows that see thousands; with
    1 at all of them, so that each block shows in a row.
    """

    name: str
    mask: Callable[[int, int, int], Mask]
    B: int
    T: int
    S: int
    N: int
    K: int
    H: int = 128
    softcap: float | None = None
    spread: int = 4


class Row(NamedTuple):
    """What a trial showed.

    Attributes:
      kernel: a name of `api.KERNELS`.
      case: the trial's name.
      error: the largest of any result, of its largest magnitude; None if nothing came.
      bound: what an error may be.
      seconds: to compile and to compute; the first row's are also those of tracing all.
      reason: why it fails; None if it passes.
    """

    kernel: str
    case: str
    error: float | None
    bound: float
    seconds: float
    reason: str | None


def _packed(B: int, T: int, S: int) -> Mask:
    """Documents that end elsewhere in every row, and keys that do not exist."""
    ends = host.array([[0.2, 0.45, 0.8], [0.1, 0.5, 0.55]])[:B, None, :]
    q, kv = ((host.arange(n)[None, :, None] >= ends * n).sum(-1) for n in (T, S))
    return Mask(q_segments=q, kv_segments=kv, kv_valid=host.arange(S)[None] % 7 > 0)


def _last(B: int, T: int, S: int) -> Mask:
    """Queries at the end of a longer past, and a window."""
    return Mask(causal=True, window=S // 3, q_positions=host.arange(S - T, S)[None])


def _filled(B: int, T: int, S: int) -> Mask:
    """A cache that one row has filled, and another to a third."""
    return Mask(kv_valid=host.arange(S)[None] < host.array([[S], [S // 3]])[:B])


TRIALS = (
    Trial("causal", lambda B, T, S: Mask(causal=True), B=1, T=2500, S=2500, N=2, K=1),
    Trial("packed", _packed, B=2, T=1100, S=2300, N=4, K=2, softcap=5.0),
    Trial("window", _last, B=1, T=600, S=2500, N=4, K=2, H=64),
)
# Many key heads, so that a GPU has no more than some 30 programs for the keys of each.
DECODING = (
    Trial("cache", _filled, B=2, T=1, S=9000, N=16, K=8, spread=1),
    Trial("cache, window", _last, B=2, T=3, S=9000, N=16, K=8, spread=1),
)


def trials(name: str) -> tuple[Trial, ...]:
    """Those that a kernel is tried on: what it takes on this device."""
    every = DECODING if name.endswith("decode") else TRIALS
    return tuple(trial for trial in every if api.BACKENDS[name].why_not(case(trial)) is None)


def case(trial: Trial) -> api.Case:
    """What a backend looks at, the mask's arrays NumPy's."""
    B, T, S = trial.B, trial.T, trial.S
    q = jax.ShapeDtypeStruct((B, T, trial.N, trial.H), "bfloat16")
    k = jax.ShapeDtypeStruct((B, S, trial.K, trial.H), "bfloat16")
    return api.case_of(q, k, trial.mask(B, T, S), False, trial.softcap)


def prove(name: str) -> Iterator[Row]:
    """A kernel's trials, computed in this process one after the other.

    Args:
      name: a name of `api.KERNELS`.
    """
    begun = time.perf_counter()
    every = {trial: _inputs(trial) for trial in trials(name)}
    with ThreadPoolExecutor(len(every) or 1) as pool:  # compilers let go of Python's lock
        compiled = [_compiled(pool, name, t, given) for t, given in every.items()]
        for (trial, given), future in zip(every.items(), compiled, strict=True):
            try:
                error, reason = _judged(future.result(), given)
            except Exception as failure:  # whatever compilers and devices raise
                said = str(failure).strip().partition("\n")[0][:200]
                error, reason = None, f"{type(failure).__name__}: {said}"
            ended = time.perf_counter()
            where = reason and f"{reason} in {trial.name!r}"
            yield Row(name, trial.name, error, BOUND, round(ended - begun, 2), where)
            begun = ended


def _inputs(trial: Trial) -> tuple[Any, ...]:
    """q, k, v, the gradient of the result, and the mask."""
    rng, call = np.random.default_rng(0), case(trial)
    shapes = (x.shape for x in (call.q, call.k, call.k, call.q))
    q, *others = (jnp.asarray(rng.standard_normal(x, np.float32), "bfloat16") for x in shapes)
    return trial.spread * q, *others, jax.tree.map(jnp.asarray, call.mask)


def _compiled(pool: ThreadPoolExecutor, name: str, trial: Trial, given: Any) -> Future:
    """What compiles a trial; an error comes with its result."""
    try:
        return pool.submit(program(name, trial).lower(*given).compile)
    except Exception as failure:
        failed: Future = Future()
        failed.set_exception(failure)
        return failed


def program(name: str, trial: Trial) -> Any:
    """The kernel's results, and how far each is from that of the dense form."""

    def both(*given):
        found = _passes(api.kernel(name), trial.softcap, *given)
        wanted = _passes(None, trial.softcap, *given)
        return found, [_error(x, y) for x, y in zip(found, wanted, strict=True)]

    return jax.jit(both)


def _passes(kernel: Kernel | None, softcap: float | None, q, k, v, grad, mask: Mask):
    """The result, its lse and the gradients of q, k and v; without a kernel, of the dense form."""
    scale = q.shape[-1] ** -0.5

    def run(q, k, v):
        if kernel is None:
            return reference.dense(q, k, v, mask, bias=None, scale=scale, softcap=softcap)
        return flash.attend(kernel, q, k, v, mask, scale=scale, softcap=softcap)

    if kernel is None:
        q, k, v, grad = (x.astype("float32") for x in (q, k, v, grad))
    # Products of float32 are rounded on the matrix units otherwise. A kernel says what it wants.
    with jax.default_matmul_precision("highest" if kernel is None else None):
        (out, lse), back = jax.vjp(run, q, k, v)
        return out, lse, *back((grad, jnp.zeros_like(lse)))


def _error(found: jax.Array, wanted: jax.Array) -> jax.Array:
    """The largest, of the largest magnitude; infinite where one is finite and the other is not."""
    there = jnp.isfinite(wanted)
    gap = jnp.where(there, jnp.abs(found.astype("float32") - wanted), 0.0)
    agree = jnp.all(jnp.isfinite(found) == there)
    return jnp.where(agree, gap.max() / jnp.abs(jnp.where(there, wanted, 0)).max(), jnp.inf)


def _judged(run: Callable[..., Any], given: Any) -> tuple[float | None, str | None]:
    """The largest error, and what is wrong."""
    first, errors = jax.device_get(run(*given))
    named = dict(zip(RESULTS, map(float, errors), strict=True))
    worst = max(named, key=lambda name: named[name])
    for name, error in named.items():
        if not np.isfinite(error):
            return None, f"{name} is not finite where it should be"
    if named[worst] > BOUND:
        return named[worst], f"{worst} differs by {named[worst]:.1e}"
    for _ in range(REPEATS - 1):
        again = jax.device_get(run(*given)[0])
        for name, x, y in zip(RESULTS, first, again, strict=True):
            if x.tobytes() != y.tobytes():
                return named[worst], f"{name} changes from run to run"
    return named[worst], None
