"""Right: attention by a kernel, and its gradients, against XLA in float32 with full products.

The error is the norm of the difference over the norm of what is right. 20 repeats must have the
same bits: one that moves is a race.
"""

import contextlib
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.bench_attention import Shape
from experiments.visit.worker import Case, Ready, Wrong
from llama_jax.kernels.attention.api import attention
from llama_jax.kernels.attention.mask import Mask
from llama_jax.kernels.target import interpreted

# Of the norm: results and gradients are rounded to 8 (bfloat16), 11 or 24 bits on the way.
TOLERANCE = {"bfloat16": 1e-2, "float16": 2e-3, "float32": 1e-5}
REPEATS = 20
SECONDS = 25  # that a case may take


def _packed(shape: Shape) -> Mask:
    rng = np.random.default_rng(0)
    q, k = (jnp.asarray(np.sort(rng.integers(1, 9, (shape.B, n)))) for n in (shape.T, shape.S))
    return Mask(causal=True, q_segments=q, kv_segments=k)


def _row(shape: Shape) -> Mask:
    """A cache of which the rows have filled a third, and all."""
    filled = jnp.linspace(shape.S // 3, shape.S, shape.B).astype(int)
    return Mask(kv_valid=jnp.arange(shape.S)[None] < filled[:, None])


def _kernels(dry: bool) -> tuple[str, str]:
    """The long kernel and that for decoding of the device at hand."""
    on_tpu = jax.default_backend() == "tpu"
    return ("pallas_tpu" if on_tpu else "pallas_gpu" if dry else "mosaic_gpu"), (
        "pallas_tpu_decode" if on_tpu else "pallas_gpu_decode"
    )


def correct(dry: bool) -> list[list[Case]]:
    long, decode = _kernels(dry)
    size = 24 if dry else 1
    kind = "float32" if dry else "bfloat16"

    def shape(T: int, S: int, H: int = 128, N: int = 4, K: int = 1, B: int = 1, dtype: str = kind):
        if dry:
            T, S, H = (max(8, T // size // 4), max(8, S // size // 4), 16)
        return Shape(B, T, S, N, K, H, dtype)

    def case(name: str, backend: str, of: Shape, mask: Any, softcap: float | None = None) -> Case:
        prepare = functools.partial(_compared, backend, of, mask, softcap, dry)
        return Case(f"right: {backend} {name}", SECONDS, prepare)

    causal = lambda of: Mask(causal=True)  # noqa: E731
    smallest = [
        case("one tile", long, shape(128, 128, N=1), lambda of: Mask()),
        case("causal 1024", long, shape(1024, 1024, N=1), causal),
    ]
    cases = [
        case("packed 4096, softcap", long, shape(4096, 4096), _packed, 30.0),
        case("window", long, shape(4096, 4096), lambda of: Mask(causal=True, window=of.S // 4 + 1)),
        case("ragged 1000 x 1500", long, shape(1000, 1500), causal),
    ]
    if dry:
        return [smallest[:1], cases[:1]]
    cases += [
        case(f"causal 4096 H {H}", long, shape(4096, 4096, H), causal) for H in (64, 128, 256)
    ]
    cases += [
        case("causal 4096 float16", long, shape(4096, 4096, dtype="float16"), causal),
        case("chunk", long, shape(4096, 4096), lambda of: Mask(causal=True, chunk=1000)),
        case("prefix", long, shape(4096, 4096), lambda of: Mask(causal=True, prefix=777)),
        case("64 queries, 8192 keys", long, shape(64, 8192, B=2), _row),
    ]
    other = [case("one new token", decode, shape(1, 8192, B=8, N=32, K=8), _row)]
    other += [case("8 new tokens", decode, shape(8, 8192, B=2, N=32, K=8), _row)]
    if long == "mosaic_gpu":
        triton = functools.partial(case, backend="pallas_gpu", mask=causal)
        other += [triton(f"causal 2048 H {H}", of=shape(2048, 2048, H)) for H in (64, 128)]
        other += [triton("causal 2048 float32", of=shape(2048, 2048, 64, dtype="float32"))]
    return [smallest, cases, other]


def _compared(backend: str, of: Shape, mask: Any, softcap: float | None, dry: bool) -> Ready:
    seen, arrays = mask(of), of.arrays()
    one_token = backend.endswith("decode")

    def both(q: Any, k: Any, v: Any, grad: Any, backend: str = backend) -> Any:
        way = functools.partial(attention, mask=seen, softcap=softcap, backend=backend)
        if one_token:
            return [way(q, k, v)]
        out, pull = jax.vjp(way, q, k, v)
        return [out, *pull(grad)]

    def right(*arrays: Any) -> Any:
        with jax.default_matmul_precision("highest"):
            return both(*(x.astype(jnp.float32) for x in arrays), backend="xla")

    with interpreted() if dry else contextlib.nullcontext():
        programs = {"kernel": jax.jit(both).lower(*arrays)}
    programs["right"] = jax.jit(right).lower(*arrays)

    def run(compiled: dict[str, Any]) -> dict[str, Any]:
        found = [np.asarray(x) for x in compiled["kernel"](*arrays)]
        figures: dict[str, Any] = {}
        for name, x, y in zip(
            ("out", "dq", "dk", "dv"), found, compiled["right"](*arrays), strict=False
        ):
            y = np.asarray(y, np.float64)
            error = float(np.linalg.norm(np.asarray(x, np.float64) - y) / np.linalg.norm(y))
            figures[name] = f"{error:.1e}"
            if not error <= TOLERANCE[of.dtype]:  # NaN too
                raise Wrong(f"{name} is off by {error:.2e} of its norm; so far {figures}")
        for again in range(1, 2 if dry else REPEATS):
            moved = [
                name
                for name, x, y in zip(figures, found, compiled["kernel"](*arrays), strict=True)
                if x.tobytes() != np.asarray(y).tobytes()
            ]
            if moved:
                raise Wrong(f"repeat {again} has other bits in {', '.join(moved)}: a race")
        return figures

    return Ready(programs, run)
