"""Small cases on which a kernel is tried where it runs, against NumPy on the host.

Each is longer than the kernels' rings: of three blocks of keys on a TPU (1024, for decoding 4096)
and of many on a GPU, so that every slot is filled again, and every barrier waited for. Lengths are
ragged, and heads are grouped. Twenty runs must give the same bits: what moves is a race.
"""

import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from llama_jax.kernels.attention import api, flash, on_host
from llama_jax.kernels.attention.mask import Mask

RESULTS = on_host.Results._fields
# By type, of the largest magnitude of each result. Probabilities, results and gradients are rounded
# to bfloat16, 4e-3 each, or to float16, 5e-4; products of float32 that are rounded to TF32, as they
# must not be, are off by 5e-4. One block of 64 keys read too early shows as 6e-2 in every trial.
BOUNDS = {"bfloat16": 2e-2, "float16": 4e-3, "float32": 1e-4}
REPEATS = 20
host: Any = np  # masks are described while something else is traced, which arrays of jax would join


@dataclass(frozen=True)
class Trial:
    """One call: shapes, a mask made of B, T and S, and the scores' standard deviation.

    `types` are those in which it is tried: what others than bfloat16 have of their own is not the
    walk over blocks, so one case will do. With a spread of 4 a query looks at a few keys, so that a
    wrong block shows in rows that see thousands; with 1 at all of them, so that each block shows in
    a row.
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
    types: tuple[str, ...] = ("bfloat16",)


class Row(NamedTuple):
    """What a trial showed.

    Attributes:
      kernel: a name of `api.PALLAS`.
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
    Trial("packed", _packed, B=2, T=1100, S=2300, N=4, K=2, softcap=5.0, types=tuple(BOUNDS)),
    Trial("window", _last, B=1, T=600, S=2500, N=4, K=2, H=64),
)
# Many key heads, so that a GPU has no more than some 30 programs for the keys of each.
DECODING = (
    Trial("cache", _filled, B=2, T=1, S=9000, N=16, K=8, spread=1),
    Trial("cache, window", _last, B=2, T=3, S=9000, N=16, K=8, spread=1, types=tuple(BOUNDS)),
)


def trials(name: str, kind: str = "bfloat16") -> tuple[Trial, ...]:
    """Those that a kernel is tried on in a type: what it takes on this device."""
    every = DECODING if name.endswith("decode") else TRIALS
    if kind != "bfloat16":
        every = [
            replace(t, name=f"{t.name}, {kind}", types=(kind,)) for t in every if kind in t.types
        ]
    return tuple(trial for trial in every if api.BACKENDS[name].why_not(case(trial)) is None)


def case(trial: Trial) -> api.Case:
    """What a backend looks at, the mask's arrays NumPy's."""
    B, T, S = trial.B, trial.T, trial.S
    q = jax.ShapeDtypeStruct((B, T, trial.N, trial.H), trial.types[0])
    k = jax.ShapeDtypeStruct((B, S, trial.K, trial.H), trial.types[0])
    return api.case_of(q, k, trial.mask(B, T, S), False, trial.softcap)


def prove(name: str, kind: str = "bfloat16") -> Iterator[Row]:
    """A kernel's trials in a type, computed in this process one after the other.

    Args:
      name: one of `api.PALLAS`.
      kind: one of `BOUNDS`.
    """
    begun = time.perf_counter()
    every = {trial: _inputs(trial) for trial in trials(name, kind)}
    # Compilers let go of Python's lock, and so do NumPy's products.
    with ThreadPoolExecutor(2 * len(every) or 1) as pool:
        compiled = [_compiled(pool, name, t, given) for t, given in every.items()]
        wanted = [pool.submit(_wanted, t, given) for t, given in every.items()]
        for (trial, given), future, right in zip(every.items(), compiled, wanted, strict=True):
            try:
                error, reason = _judged(future.result(), given, right.result(), BOUNDS[kind])
            except Exception as failure:  # whatever compilers and devices raise
                said = str(failure).strip().partition("\n")[0][:200]
                error, reason = None, f"{type(failure).__name__}: {said}"
            ended = time.perf_counter()
            where = reason and f"{reason} in {trial.name!r}"
            yield Row(name, trial.name, error, BOUNDS[kind], round(ended - begun, 2), where)
            begun = ended


def _inputs(trial: Trial) -> tuple[Any, ...]:
    """q, k, v, the gradient of the result, and the mask."""
    rng, call = np.random.default_rng(0), case(trial)
    shapes = (x.shape for x in (call.q, call.k, call.k, call.q))
    q, *others = (jnp.asarray(rng.standard_normal(x, np.float32), trial.types[0]) for x in shapes)
    return trial.spread * q, *others, jax.tree.map(jnp.asarray, call.mask)


def _wanted(trial: Trial, given: Any) -> on_host.Results:
    """What is right, from the rounded inputs."""
    q, k, v, grad, _ = given
    mask = case(trial).mask
    return on_host.both_passes(q, k, v, grad, mask, trial.H**-0.5, trial.softcap)


def _compiled(pool: ThreadPoolExecutor, name: str, trial: Trial, given: Any) -> Future:
    """What compiles a trial; an error comes with its result."""
    try:
        return pool.submit(program(name, trial).lower(*given).compile)
    except Exception as failure:
        failed: Future = Future()
        failed.set_exception(failure)
        return failed


def program(name: str, trial: Trial) -> Any:
    """The kernel's result, its lse and the gradients of q, k and v; one program for all repeats."""
    kernel = api.kernel(name)

    def both(q, k, v, grad, mask):
        def run(q, k, v):
            scale = trial.H**-0.5
            return flash.attend(kernel, q, k, v, mask, scale=scale, softcap=trial.softcap)

        # A kernel says itself how exactly it multiplies.
        with jax.default_matmul_precision(None):
            (out, lse), back = jax.vjp(run, q, k, v)
            return out, lse, *back((grad, jnp.zeros_like(lse)))

    return jax.jit(both)


def _error(found: np.ndarray, wanted: np.ndarray) -> float:
    """The largest, of the largest magnitude; infinite where one is finite and the other is not."""
    found, there = found.astype(np.float32), np.isfinite(wanted)
    if not (np.isfinite(found) == there).all():
        return float("inf")
    gap = np.abs(np.where(there, found, 0) - np.where(there, wanted, 0)).max()
    return float(gap / np.abs(np.where(there, wanted, 0)).max())


def _judged(
    run: Callable[..., Any], given: Any, wanted: on_host.Results, bound: float
) -> tuple[float | None, str | None]:
    """The largest error, and what is wrong."""
    first = jax.device_get(run(*given))
    named = {name: _error(x, y) for name, x, y in zip(RESULTS, first, wanted, strict=True)}
    worst = max(named, key=lambda name: named[name])
    for name, error in named.items():
        if not np.isfinite(error):
            return None, f"{name} is not finite where it should be"
    if named[worst] > bound:
        return named[worst], f"{worst} differs by {named[worst]:.1e}"
    for _ in range(REPEATS - 1):
        again = jax.device_get(run(*given))
        for name, x, y in zip(RESULTS, first, again, strict=True):
            if x.tobytes() != y.tobytes():
                return named[worst], f"{name} changes from run to run"
    return named[worst], None
