"""What neither a compiler nor a small case shows: counts at the edges, and wide numbers."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from llama_jax.kernels.attention import mosaic_gpu, triton_decode
from llama_jax.kernels.attention.api import attention
from llama_jax.kernels.attention.block_lists import visits
from llama_jax.kernels.attention.block_mask import codes, operands
from llama_jax.kernels.attention.mask import Mask
from llama_jax.kernels.target import interpreted
from tests.kernels.attention.suite import TOLERANCE, truth
from tests.kernels.attention.test_mosaic_gpu import LSE_TOLERANCE, Shape, check

pytestmark = pytest.mark.kernels


# The two consumers of the forward pass meet twice a step, once before the first and once after the
# last; who waits for one that does not come hangs a GPU. A tile is 128 queries, a step 128 keys.
EDGES = {  # positions of the first and of the last query of a tile: blocks seen in part, and at all
    (-130, -3): (0, 0),
    (0, 127): (1, 1),
    (127, 127): (0, 1),
    (100, 200): (2, 2),
    (128, 255): (1, 2),
    (256, 300): (1, 3),
    (511, 600): (0, 4),
    (383, 383): (0, 3),
}


@pytest.mark.slow
def test_consumers_meet_equally_often_whatever_a_tile_sees():
    tiles = [np.linspace(*ends, 128).round().astype(int) for ends in EDGES]
    mask = Mask(causal=True, q_positions=jnp.asarray(np.concatenate(tiles))[None])
    shape = Shape(128 * len(tiles), 512)
    data = operands(mask, 1, shape.T, shape.S)
    way = visits(codes(mask.structure, data, shape.T, shape.S, 128, 128), False)
    assert [tuple(map(int, row[:2])) for row in way[0]] == list(EDGES.values())
    from jax._src.pallas.mosaic_gpu.interpret import interpret_pallas_call

    with interpreted():
        check(shape, mask)
    assert not interpret_pallas_call.get_races().races_found


@pytest.mark.parametrize("splits", [1, 3, 132, 528])
@pytest.mark.parametrize("blocks", [0, 1, 131, 132, 1000, 2**31 - 1])
def test_programs_share_the_blocks_of_any_row_without_a_gap(blocks, splits):
    shares = triton_decode.before(jnp.arange(splits + 1), jnp.int32(blocks), splits)
    mine = np.diff(np.asarray(shares, np.int64))
    assert shares[0] == 0 and mine.sum() == blocks
    assert mine.max() - mine.min() <= 1


@pytest.mark.parametrize("scale", [-0.3, 0.0])
@pytest.mark.parametrize(
    "backend", ["pallas_gpu", "pallas_gpu_decode", "pallas_tpu", "xla_chunked"]
)
def test_a_negative_scale_and_none_agree_with_the_definition(backend, scale):
    rng = np.random.default_rng(0)
    T = 1 if backend.endswith("decode") else 24
    q, k, v, grad = (
        jnp.asarray(rng.standard_normal((2, n, heads, 16)), jnp.float32)
        for n, heads in ((T, 4), (40, 2), (40, 2), (T, 4))
    )
    # The first row sees nothing: -inf times a scale of zero would be no number.
    mask = Mask(kv_valid=jnp.arange(40)[None] < jnp.asarray([[0], [33]]))

    @jax.jit
    def both(q, k, v, grad, mask):
        way = functools.partial(attention, mask=mask, scale=scale, backend=backend)
        out, back = jax.vjp(way, q, k, v)
        return out, *back(grad)

    with interpreted():
        found = both(q, k, v, grad, mask)
    seen = np.broadcast_to(mask.dense(T, 40), (2, T, 40))
    for x, wanted in zip(found, truth(q, k, v, seen, grad, scale=scale), strict=True):
        largest = max(np.abs(wanted).max(), 1e-30)
        assert np.abs(np.asarray(x, np.float64) - wanted).max() / largest <= TOLERANCE["float32"]


@pytest.mark.slow
@pytest.mark.parametrize("scale", [-0.3, 0.0])
def test_a_negative_scale_and_none_agree_on_hopper(scale):
    mask = Mask(kv_valid=jnp.arange(40)[None] < jnp.asarray([[0], [33]]))
    rng = np.random.default_rng(0)
    q, k = (jnp.asarray(rng.standard_normal((2, n, 1, 64)), jnp.bfloat16) for n in (24, 40))
    with interpreted():
        way = functools.partial(attention, scale=scale, backend="mosaic_gpu")
        out = jax.jit(way)(q, k, k, mask)
    seen = np.broadcast_to(mask.dense(24, 40), (2, 24, 40))
    wanted = truth(q, k, k, seen, q, scale=scale)[0]
    error = np.abs(np.asarray(out, np.float64) - wanted).max() / np.abs(wanted).max()
    assert error <= TOLERANCE["bfloat16"]


# PTX ISA: ex2.approx.ftz and lg2.approx are off by 2^-22, of the value and absolutely.
APPROXIMATE = 2.0**-22


@pytest.mark.parametrize("sign", [-1, 1])
def test_approximate_instructions_move_lse_by_less_than_a_tenth_of_its_tolerance(sign):
    rng = np.random.default_rng(0)
    q, k = (rng.standard_normal((n, 128)).astype(np.float32) for n in (64, 4096))
    scores = q @ k.T * 128**-0.5
    exact = np.log(np.exp(scores.astype(np.float64)).sum(axis=1))
    x = (scores * np.float32(mosaic_gpu.LOG2E)).astype(np.float32)
    top = x.max(axis=1, keepdims=True)
    # Every exponential off to the same side, which is the worst that they can do.
    p = np.exp2(x - top) * np.float32(1 + sign * APPROXIMATE)
    lse2 = np.log2(p.sum(axis=1, dtype=np.float32)) + np.float32(sign * APPROXIMATE)
    found = (top[:, 0] + lse2) * math.log(2)
    assert np.abs(found - exact).max() / np.abs(exact).max() < LSE_TOLERANCE / 10
