"""The TPU kernels block by block in Python, against dense attention in float64."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from llama_jax.kernels.attention import mosaic_tpu, mosaic_tpu_decode, mosaic_tpu_steps
from llama_jax.kernels.attention.api import Case
from llama_jax.kernels.attention.block_mask import PARTLY, WHOLE, operands
from llama_jax.kernels.attention.flash import Static, delta
from llama_jax.kernels.attention.mask import Mask
from llama_jax.kernels.target import interpreted

pytestmark = pytest.mark.kernels

# Relative to the largest entry: a few roundings of float32, and of bfloat16 (2^-8) for the
# probabilities and the result.
TOLERANCE = {jnp.float32: 2e-6, jnp.bfloat16: 1e-2}
BLOCK = 16
SMALL = mosaic_tpu.Blocks((BLOCK, BLOCK), (BLOCK, BLOCK), (BLOCK, BLOCK))
B, T, S, H = 2, 24, 40, 16


def arrays(T=T, S=S, N=4, K=2, H=H, dtype=jnp.float32):
    """q, k, v and the gradient of the result."""
    rng = np.random.default_rng(0)
    shapes = (B, T, N, H), (B, S, K, H), (B, S, K, H), (B, T, N, H)
    return [jnp.asarray(rng.standard_normal(shape), dtype) for shape in shapes]


def dense(q, k, v, grad, mask, scale, softcap=None):
    """out, lse, dq, dk, dv in float64, from the formulas in flash.py."""
    q, k, v, grad = (np.asarray(x, np.float64) for x in (q, k, v, grad))
    G = q.shape[2] // k.shape[2]
    keys, values = (np.repeat(x, G, axis=2) for x in (k, v))
    s = scale * np.einsum("btnh,bsnh->bnts", q, keys)
    slope = np.ones_like(s)
    if softcap is not None:
        s = softcap * np.tanh(s / softcap)
        slope = 1 - (s / softcap) ** 2
    seen = np.asarray(mask.dense(q.shape[1], k.shape[1]))[:, None]
    with np.errstate(divide="ignore"):
        lse = np.log(np.sum(np.where(seen, np.exp(s), 0), axis=-1))
    p = np.where(seen, np.exp(s - np.where(np.isfinite(lse), lse, 0)[..., None]), 0)
    out = np.einsum("bnts,bsnh->btnh", p, values)
    dp = np.einsum("btnh,bsnh->bnts", grad, values)
    ds = p * (dp - np.sum(p * dp, axis=-1, keepdims=True)) * slope

    def grouped(x):
        return x.reshape(*x.shape[:2], -1, G, x.shape[3]).sum(axis=3)

    dq = scale * np.einsum("bnts,bsnh->btnh", ds, keys)
    dk = grouped(scale * np.einsum("bnts,btnh->bsnh", ds, q))
    dv = grouped(np.einsum("bnts,btnh->bsnh", p, grad))
    return out, lse, dq, dk, dv


def computed(q, k, v, grad, mask, scale, softcap=None, kernel=None):
    """The same by the kernel."""
    kernel = mosaic_tpu.kernel(SMALL) if kernel is None else kernel
    data = operands(mask, B, q.shape[1], k.shape[1])
    static = Static(mask.structure, scale, softcap)

    @jax.jit
    def both(q, k, v, grad, data):
        out, lse = kernel.forward(q, k, v, data, static)
        return out, lse, *kernel.backward(q, k, v, data, static, lse, delta(out, grad), grad)

    with interpreted():
        return both(q, k, v, grad, data)


def close(got, expected, tolerance):
    for name, x, y in zip(("out", "lse", "dq", "dk", "dv"), got, expected, strict=False):
        x, finite = np.asarray(x, np.float64), np.isfinite(y)
        np.testing.assert_array_equal(x[~finite], y[~finite], err_msg=name)
        largest = max(np.abs(y[finite]).max(initial=0), 1e-30)
        error = np.abs(x[finite] - y[finite]).max(initial=0) / largest
        assert error <= tolerance, f"{name} is off by {error:.1e}"


def agree(mask, scale=0.3, softcap=None, dtype=jnp.float32, kernel=None, **shape):
    inputs = arrays(dtype=dtype, **shape)
    got = computed(*inputs, mask, scale, softcap, kernel)
    close(got, dense(*inputs, mask, scale, softcap), TOLERANCE[dtype])


def packed(length, lengths):
    """Segments 0, 1, ... of the given lengths, the last one to the end."""
    return jnp.asarray(np.searchsorted(np.cumsum(lengths), np.arange(length), side="right"))[None]


RANDOM = jnp.asarray(np.random.default_rng(1).random((B, T, S)) < 0.3)
FURTHER = jnp.asarray([[0], [9]])
MASKS = {
    "all": Mask(),
    "causal": Mask(causal=True),
    "window": Mask(causal=True, window=7),
    "both sides of a window": Mask(window=7),
    "chunk": Mask(causal=True, chunk=12),
    "prefix": Mask(causal=True, prefix=jnp.asarray([3, 30])),
    "positions": Mask(causal=True, q_positions=FURTHER + jnp.arange(T)),
    "segments": Mask(
        causal=True, q_segments=packed(T, [5, 11, 2]), kv_segments=packed(S, [4, 13, 9])
    ),
    "lengths": Mask(kv_valid=jnp.arange(S) < jnp.asarray([[35], [7]])),
    "nothing": Mask(kv_valid=jnp.arange(S) < jnp.asarray([[0], [9]])),
    "allow": Mask(allow=RANDOM),
    "all data": Mask(
        causal=True,
        window=30,
        prefix=jnp.asarray([3, 30]),
        q_positions=FURTHER + jnp.arange(T),
        q_segments=packed(T, [9]),
        kv_segments=packed(S, [17]),
        kv_valid=jnp.arange(S) < jnp.asarray([[35], [20]]),
        allow=RANDOM,
    ),
}


@pytest.mark.parametrize("name", MASKS)
def test_result_and_gradients_agree_with_dense_attention(name):
    agree(MASKS[name])


@pytest.mark.parametrize(("N", "K"), [(2, 2), (4, 1), (16, 1)])
def test_heads_that_share_a_key_head_agree_with_dense_attention(N, K):
    agree(Mask(causal=True), N=N, K=K, T=16, S=16)


@pytest.mark.parametrize("H", [80, 256])
def test_head_dims_need_not_be_128(H):
    agree(Mask(causal=True), T=16, S=16, H=H, scale=0.1)


@pytest.mark.parametrize("name", ["causal", "lengths"])
def test_bfloat16_agrees_within_its_roundings(name):
    agree(MASKS[name], dtype=jnp.bfloat16)


def test_capped_scores_have_the_slope_of_the_cap():
    agree(Mask(causal=True), softcap=0.8, scale=0.5)


@pytest.mark.parametrize(("T", "S"), [(5, 33), (33, 5), (32, 32)])
def test_lengths_need_not_be_whole_blocks(T, S):
    agree(Mask(causal=True), T=T, S=S)


def test_queries_beyond_the_last_key_s_chunk_give_zeros():
    agree(Mask(chunk=8), T=40, S=10)


def test_a_batch_whose_steps_are_too_many_goes_row_by_row(monkeypatch):
    monkeypatch.setattr(mosaic_tpu, "STEPS_BYTES", 4)
    agree(MASKS["lengths"])


def test_gradients_of_a_part_of_the_keys_follow_the_lse_of_all():
    q, k, v, grad = arrays(T=16, S=32)
    mask, static = Mask(), Static(Mask(), 0.3, None)
    out, lse, dq, dk, dv = dense(q, k, v, grad, mask, 0.3)
    sums = jnp.asarray(lse, jnp.float32), delta(jnp.asarray(out, jnp.float32), grad)
    data = operands(mask, B, 16, 16)
    with interpreted():
        parts = [
            mosaic_tpu.kernel(SMALL).backward(q, k[:, half], v[:, half], data, static, *sums, grad)
            for half in (slice(0, 16), slice(16, 32))
        ]
    dqs, dks, dvs = zip(*parts, strict=True)
    got = sum(dqs), jnp.concatenate(dks, 1), jnp.concatenate(dvs, 1)
    close((out, lse, *got), (out, lse, dq, dk, dv), TOLERANCE[jnp.float32])


def test_steps_name_only_blocks_that_are_seen():
    mask = Mask(causal=True)
    steps = mosaic_tpu_steps.by_queries(mask.structure, operands(mask, B, 32, 32), 32, 32, 16, 16)
    found = [tuple(map(int, mosaic_tpu_steps.unpack(x))) for x in steps.packed]
    # owner, other, code, first, last
    assert found == [(0, 0, PARTLY, 1, 1), (1, 0, WHOLE, 1, 0), (1, 1, PARTLY, 0, 1)]
    assert steps.stride == 0


def test_steps_of_data_are_as_many_as_the_longest_row_needs():
    mask = Mask(kv_valid=jnp.arange(64) < jnp.asarray([[16], [40]]))
    steps = mosaic_tpu_steps.by_queries(mask.structure, operands(mask, B, 16, 64), 16, 64, 16, 16)
    assert (steps.length, int(steps.count), steps.stride) == (4, 3, 4)
    rows = np.reshape(steps.packed, (B, 4))
    others = [[int(mosaic_tpu_steps.unpack(x).other) for x in row] for row in rows]
    assert others == [[0, 0, 0, 0], [0, 1, 2, 2]]  # a step that is left over fetches nothing new


def test_every_block_of_keys_has_a_step_for_its_zeros():
    mask = Mask(causal=True)
    steps = mosaic_tpu_steps.by_keys(mask.structure, operands(mask, 1, 16, 48), 16, 48, 16, 16)
    assert [int(mosaic_tpu_steps.unpack(x).owner) for x in steps.packed] == [0, 1, 2]


DECODE = {
    "positions": Mask(causal=True, q_positions=jnp.asarray([[4], [39]])),
    "window": Mask(causal=True, window=9, q_positions=jnp.asarray([[4], [39]])),
    "lengths": Mask(kv_valid=jnp.arange(S) < jnp.asarray([[0], [20]])),
    "segments": Mask(q_segments=jnp.ones((1, 1), int), kv_segments=packed(S, [7, 13])),
    "chunk": Mask(causal=True, chunk=12, q_positions=jnp.asarray([[4], [39]])),
    "all": Mask(),
}


@pytest.mark.parametrize("name", DECODE)
@pytest.mark.parametrize(("N", "K"), [(4, 1), (6, 3)])
def test_one_query_over_a_cache_agrees_with_dense_attention(name, N, K):
    inputs = arrays(T=1, N=N, K=K)
    close(decoded(*inputs[:3], DECODE[name]), dense(*inputs, DECODE[name], 0.3)[:2], 2e-6)


# A head that does not fill the 128 lanes is read with a key in each lane, as XLA lays it out.
@pytest.mark.parametrize("name", DECODE)
@pytest.mark.parametrize("H", [16, 64, 128])
def test_heads_that_fill_the_lanes_and_that_do_not_agree_with_dense_attention(name, H):
    inputs = arrays(T=1, N=4, K=2, H=H)
    close(decoded(*inputs[:3], DECODE[name]), dense(*inputs, DECODE[name], 0.3)[:2], 2e-6)


@pytest.mark.parametrize("softcap", [None, 0.8])
def test_narrow_heads_over_a_ragged_cache_agree_with_dense_attention(softcap):
    # The last of three blocks has 9 keys; what lies beyond them must not be read as a number.
    mask = Mask(causal=True, prefix=jnp.asarray([3, 30]), q_positions=jnp.asarray([[39], [22]]))
    q, k, v, grad = arrays(T=1, S=41, H=64)
    got = decoded(q, k, v, mask, softcap)
    close(got, dense(q, k, v, grad, mask, 0.3, softcap)[:2], 2e-6)


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("H", [64, 128])
def test_a_few_queries_over_a_cache_agree_with_dense_attention(H, dtype):
    mask = Mask(causal=True, q_positions=jnp.asarray([[4], [37]]) + jnp.arange(3))
    inputs = arrays(T=3, H=H, dtype=dtype)
    close(decoded(*inputs[:3], mask), dense(*inputs, mask, 0.3)[:2], TOLERANCE[dtype])


def decoded(q, k, v, mask, softcap=None):
    forward = functools.partial(mosaic_tpu_decode.forward, block=BLOCK)
    data = operands(mask, B, q.shape[1], k.shape[1])
    with interpreted():
        return jax.jit(forward, static_argnums=4)(
            q, k, v, data, Static(mask.structure, 0.3, softcap)
        )


def case(T=8192, S=8192, N=8, H=128, dtype=jnp.bfloat16, mask=None, bias=False):
    q, k = (jax.ShapeDtypeStruct((1, L, n, H), dtype) for L, n in ((T, N), (S, 2)))
    return Case("tpu", q, k, Mask(causal=True) if mask is None else mask, bias, None)


def test_refusals_say_what_came_and_what_is_taken():
    assert mosaic_tpu.why_not(case()) is None
    assert mosaic_tpu.why_not(case(T=1 << 18, S=1 << 18)) is None
    for refused, words in (
        (case(bias=True), "bias"),
        (case(mask=Mask(parts=(4096, 4096))), "(4096, 4096)"),
        (case(dtype=jnp.float16), "float16"),
        (case(H=1024), "1024 is more than 256"),
        (case(T=1 << 19, S=1 << 19), "scalar memory"),
    ):
        assert words in mosaic_tpu.why_not(refused)
    assert mosaic_tpu_decode.why_not(case(T=1)) is None
    assert mosaic_tpu_decode.why_not(case(T=1, H=64)) is None
    assert "heads of 20" in mosaic_tpu_decode.why_not(case(T=1, H=20))
    assert "8192 queries x 4 heads of a key head" in mosaic_tpu_decode.why_not(case())
    assert "allow" in mosaic_tpu_decode.why_not(
        case(T=1, mask=Mask(allow=jnp.ones((1, 1, 1), bool)))
    )
