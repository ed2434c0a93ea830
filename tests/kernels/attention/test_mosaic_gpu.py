"""The kernels for Hopper against a definition in float64: played by threads, and on a GPU if lent.

jax plays the warpgroups of a block with threads of Python, checks that no barrier is passed early
or left waiting, and looks for races; it computes products itself. What only hardware can say is
asked of it by `python -m tests.kernels.attention.test_mosaic_gpu`, which the test marked `gpu`
starts.
"""

import os
import shutil
import subprocess
import sys
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from llama_jax.kernels.attention.api import Case
from llama_jax.kernels.attention.block_mask import operands
from llama_jax.kernels.attention.flash import Static, delta
from llama_jax.kernels.attention.mask import Mask
from llama_jax.kernels.attention.mosaic_gpu import HOPPER, why_not
from llama_jax.kernels.target import interpreted

pytestmark = pytest.mark.kernels

# Of the greatest value. Weights and gradients of scores are rounded to bfloat16 (2^-9) before they
# are multiplied, and so are the results; float16 has 3 bits more.
TOLERANCE = {"bfloat16": 1e-2, "float16": 2e-3}
# lse is summed in float32 from products of unit variance: errors of some 1e-6, of exp2 1e-7.
LSE_TOLERANCE = 1e-5


class Shape(NamedTuple):
    """Sizes and what else is not in a mask."""

    T: int
    S: int
    H: int = 64
    B: int = 1
    N: int = 1
    K: int = 1
    softcap: float | None = None
    dtype: Any = jnp.bfloat16


def rising(B, length, count, seed):
    x = np.sort(np.random.default_rng(seed).integers(0, count, (B, length)), axis=1)
    return jnp.asarray(x, jnp.int32)


def cases(scale=1):
    """Each feature once; lengths are ragged, and times `scale` on a GPU, which has the time."""
    T, S = 90 * scale, 150 * scale
    shuffled = jnp.asarray(np.random.default_rng(2).permutation(S)[None])
    packed = Mask(
        causal=True,
        q_segments=rising(1, T, 3, seed=0),
        kv_segments=rising(1, S, 4, seed=1),
        kv_valid=jnp.arange(S)[None] % 7 > 0,
    )
    return {
        "grouped heads": (Shape(T, S, N=2), Mask(causal=True)),
        "everything": (Shape(S, S, dtype=jnp.float16), Mask()),
        "packed, capped": (Shape(T, S, softcap=5.0), packed),
        "positions": (
            Shape(T, S, H=128),
            Mask(
                causal=True, window=40, q_positions=jnp.arange(T)[None] + 60, kv_positions=shuffled
            ),
        ),  # fmt: skip
        "prefix, padded head dim": (
            Shape(T, S, H=80, B=2),
            Mask(
                causal=True,
                chunk=100,
                prefix=jnp.array([0, 110]),
                kv_valid=jnp.arange(S)[None] > jnp.array([[30], [-1]]),
            ),
        ),  # fmt: skip
        # Six steps, so that every slot of a ring is filled again and again.
        "head dim 256, many steps": (
            Shape(64 * scale, 330 * scale, H=256),
            Mask(
                causal=True,
                window=300 * scale,
                q_positions=jnp.arange(64 * scale)[None] + 260 * scale,
            ),
        ),  # fmt: skip
    }


def inputs(shape: Shape):
    """q, k, v and the gradient of the result."""
    rng = np.random.default_rng(0)
    q, kv = (shape.B, shape.T, shape.N, shape.H), (shape.B, shape.S, shape.K, shape.H)
    return [jnp.asarray(rng.normal(size=s), shape.dtype) for s in (q, kv, kv, q)]


def definition(shape: Shape, mask: Mask):
    """out, lse, dq, dk, dv in float64."""
    q, k, v, grad = (np.asarray(x, np.float64) for x in inputs(shape))
    B, T, N, H = q.shape
    k, v = (np.repeat(x, N // shape.K, axis=2) for x in (k, v))
    seen = np.broadcast_to(mask.dense(T, shape.S), (B, T, shape.S))[:, None]
    scores = np.einsum("BTNH,BSNH->BNTS", q, k) * H**-0.5
    slope = H**-0.5
    if shape.softcap:
        scores = shape.softcap * np.tanh(scores / shape.softcap)
        slope = slope * (1 - (scores / shape.softcap) ** 2)
    p = np.where(seen, np.exp(scores), 0.0)
    weight = p.sum(-1, keepdims=True)
    p = p / np.where(weight == 0, 1, weight)
    with np.errstate(divide="ignore"):
        lse = np.log(weight[..., 0])
    dp = np.einsum("BTNH,BSNH->BNTS", grad, v)
    ds = p * (dp - (p * dp).sum(-1, keepdims=True)) * slope

    def shared(x):  # the gradients of one key head come from all heads that read it
        return x.reshape(B, shape.S, shape.K, -1, H).sum(3)

    return (
        np.einsum("BNTS,BSNH->BTNH", p, v),
        lse,
        np.einsum("BNTS,BSNH->BTNH", ds, k),
        shared(np.einsum("BNTS,BTNH->BSNH", ds, q)),
        shared(np.einsum("BNTS,BTNH->BSNH", p, grad)),
    )


def computed(shape: Shape, mask: Mask):
    """The same by the kernels."""
    static = Static(mask.structure, shape.H**-0.5, shape.softcap)

    @jax.jit
    def both(q, k, v, grad, mask):
        data = operands(mask, shape.B, shape.T, shape.S)
        out, lse = HOPPER.forward(q, k, v, data, static)
        change = delta(out, grad)
        return out, lse, *HOPPER.backward(q, k, v, data, static, lse, change, grad)

    # A mask without data stays a constant.
    if not jax.tree.leaves(mask):
        return jax.jit(lambda *x: both(*x, mask))(*inputs(shape))
    return both(*inputs(shape), mask)


def errors(shape: Shape, mask: Mask) -> dict[str, float]:
    """Of each result, of the greatest value; raises if lse is not -inf where it should be."""
    found, wanted = computed(shape, mask), definition(shape, mask)
    named = {}
    for name, x, y in zip(("out", "lse", "dq", "dk", "dv"), found, wanted, strict=True):
        x = np.asarray(x, np.float64)
        assert x.shape == y.shape
        if name == "lse":
            none = np.isinf(y)
            np.testing.assert_array_equal(x[none], -np.inf)
            x, y = np.where(none, 0, x), np.where(none, 0, y)
        named[name] = float(np.abs(x - y).max() / np.abs(y).max())
    return named


def check(shape: Shape, mask: Mask) -> dict[str, float]:
    named = errors(shape, mask)
    limit = TOLERANCE[jnp.dtype(shape.dtype).name]
    for name, error in named.items():
        assert error < (LSE_TOLERANCE if name == "lse" else limit), named
    return named


@pytest.mark.slow
@pytest.mark.parametrize("name", cases())
def test_both_passes_compute_the_definition_without_races(name):
    from jax._src.pallas.mosaic_gpu.interpret import interpret_pallas_call

    with interpreted():
        check(*cases()[name])
    assert not interpret_pallas_call.get_races().races_found


@pytest.mark.gpu
@pytest.mark.skipif(shutil.which("nvidia-smi") is None, reason="there is no NVIDIA GPU")
def test_a_gpu_computes_the_definition():
    # In a process of its own: this one is told to see no GPU.
    child = [sys.executable, "-m", "tests.kernels.attention.test_mosaic_gpu"]
    subprocess.run(child, check=True, env={**os.environ, "JAX_PLATFORMS": "cuda", "XLA_FLAGS": ""})


def case(mask=None, *, H=128, dtype=jnp.bfloat16, bias=False, platform="tpu"):
    q = jax.ShapeDtypeStruct((2, 512, 8, H), dtype)
    k = jax.ShapeDtypeStruct((2, 512, 2, H), dtype)
    return Case(platform, q, k, mask or Mask(), bias, None)


@pytest.mark.parametrize(
    "refused, reason",
    [
        (case(dtype=jnp.float32), "not float32"),
        (case(H=320), "head dim 320 is more than 256"),
        (case(bias=True), "bias"),
        (case(Mask(parts=(200, 312))), "parts"),
        (case(Mask(allow=jnp.ones((1, 512, 512), bool))), "allow"),
        (case(platform="gpu"), "Hopper GPUs, and the target is cpu"),
    ],
)
def test_what_the_kernels_cannot_take_is_refused_with_a_reason(refused, reason):
    assert reason in (why_not(refused) or "")


def test_the_other_cases_are_taken():
    mask = Mask(causal=True, window=64, kv_valid=jnp.ones((2, 512), bool))
    assert why_not(case(mask)) is None
    assert why_not(case(mask, H=80, dtype=jnp.float16)) is None


if __name__ == "__main__":
    for name, (shape, mask) in cases(scale=5).items():
        shape = shape._replace(N=4, K=2)
        print(name, {key: f"{error:.1e}" for key, error in check(shape, mask).items()})
