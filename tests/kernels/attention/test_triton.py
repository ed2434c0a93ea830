"""The GPU kernels, interpreted: both passes against a definition in float64."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from llama_jax.kernels.attention import triton_decode
from llama_jax.kernels.attention.api import Case
from llama_jax.kernels.attention.block_mask import operands
from llama_jax.kernels.attention.flash import Kernel, Static, delta
from llama_jax.kernels.attention.mask import Mask
from llama_jax.kernels.attention.triton import Tile, Tiles, kernel, tiles, visits, why_not
from llama_jax.kernels.target import interpreted

pytestmark = pytest.mark.kernels

# Of the largest entry. float32: sums of some tens of terms. bfloat16: p and ds are rounded to 8
# bits before they are multiplied, inputs and results too.
TOLERANCE = {jnp.float32: 2e-6, jnp.bfloat16: 1e-2}
# More blocks than one in each direction, at the least that a tile may have.
SMALL = Tiles(Tile(16, 16), Tile(16, 16), Tile(16, 16))


def random(B=2, T=40, S=40, N=4, K=2, H=16, dtype=jnp.float32, seed=0):
    """q, k, v and a gradient of the result."""
    rng = np.random.default_rng(seed)
    shapes = ((B, T, N, H), (B, S, K, H), (B, S, K, H), (B, T, N, H))
    return [jnp.asarray(rng.normal(size=s), dtype) for s in shapes]


def definition(inputs, mask, scale, softcap):
    """out, lse, dq, dk, dv in float64."""
    q, k, v, grad = (np.asarray(x, np.float64) for x in inputs)
    (B, T, N, H), (S, K) = q.shape, k.shape[1:3]
    seen = np.broadcast_to(mask.dense(T, S), (B, T, S))[:, None, None]
    q, grad = (x.reshape(B, T, K, N // K, H) for x in (q, grad))
    scores = np.einsum("BTKGH,BSKH->BKGTS", q, k) * scale
    slope = scale
    if softcap is not None:
        scores = softcap * np.tanh(scores / softcap)
        slope = scale * (1 - (scores / softcap) ** 2)
    with np.errstate(divide="ignore"):
        top = np.max(scores, axis=-1, keepdims=True)
        p = np.where(seen, np.exp(scores - top), 0)
        lse = top + np.log(p.sum(-1, keepdims=True))
    p = p / np.maximum(p.sum(-1, keepdims=True), 1e-300)
    out = np.einsum("BKGTS,BSKH->BTKGH", p, v)
    dp = np.einsum("BTKGH,BSKH->BKGTS", grad, v)
    ds = p * (dp - (p * dp).sum(-1, keepdims=True)) * slope
    return (
        out.reshape(B, T, N, H),
        lse.reshape(B, N, T),
        np.einsum("BKGTS,BSKH->BTKGH", ds, k).reshape(B, T, N, H),
        np.einsum("BKGTS,BTKGH->BSKH", ds, q),
        np.einsum("BKGTS,BTKGH->BSKH", p, grad),
    )


def computed(passes, inputs, mask, scale, softcap):
    """The same by a kernel."""
    static = Static(mask.structure, scale, softcap)

    @jax.jit
    def both(q, k, v, grad, mask):
        data = operands(mask, q.shape[0], q.shape[1], k.shape[1])
        out, lse = passes.forward(q, k, v, data, static)
        gradients = passes.backward(q, k, v, data, static, lse, delta(out, grad), grad)
        return out, lse, *gradients

    with interpreted():
        return both(*inputs, mask)


def agree(passes, inputs, mask, scale=0.3, softcap=None):
    found = computed(passes, inputs, mask, scale, softcap)
    expected = definition(inputs, mask, scale, softcap)
    dtype = inputs[0].dtype.type
    for name, x, y in zip(("out", "lse", "dq", "dk", "dv"), found, expected, strict=True):
        assert x.dtype == (jnp.float32 if name == "lse" else inputs[0].dtype)
        x = np.asarray(x, np.float64)
        np.testing.assert_array_equal(np.isneginf(x), np.isneginf(y), name)
        x, y = np.where(np.isneginf(x), 0, x), np.where(np.isneginf(y), 0, y)
        # `lse` is not rounded to bfloat16, but p's sum is of values from rounded products.
        error = np.abs(x - y).max() / max(np.abs(y).max(), 1e-30)
        assert error <= TOLERANCE[dtype], f"{name}: {error:.2e}"


RNG = np.random.default_rng(1)
PLACES = np.cumsum(RNG.integers(0, 2, (2, 40)), axis=1)
DOCUMENTS = np.sort(RNG.integers(0, 4, (2, 40)), axis=1)
MASKS = {
    "all": Mask(),
    "causal": Mask(causal=True),
    "window": Mask(causal=True, window=9),
    "window on both sides": Mask(window=9),
    "chunk": Mask(causal=True, chunk=12),
    "prefix": Mask(causal=True, prefix=jnp.array([30, 0])),
    "positions": Mask(
        causal=True, q_positions=jnp.asarray(PLACES + 3), kv_positions=jnp.asarray(PLACES)
    ),
    "segments": Mask(
        causal=True, q_segments=jnp.asarray(DOCUMENTS), kv_segments=jnp.asarray(DOCUMENTS)
    ),
    "valid": Mask(kv_valid=jnp.arange(40)[None] < jnp.array([[40], [17]])),
    "allow": Mask(allow=jnp.asarray(RNG.random((2, 40, 40)) < 0.4)),
    "nothing": Mask(causal=True, kv_valid=jnp.zeros((2, 40), bool)),
}


@pytest.mark.parametrize("name", MASKS)
def test_both_passes_compute_the_definition_under(name):
    agree(kernel(SMALL), random(), MASKS[name])


CASES = {
    "more keys than queries, both ragged, one head a key head": (
        {"T": 21, "S": 50, "N": 2, "K": 2},
        None,
    ),
    "fewer keys than queries, four heads a key head": ({"T": 50, "S": 21, "N": 4, "K": 1}, None),
    "a head dim that is no power of two": ({"H": 20}, None),
    "scores that are capped": ({}, 2.0),
    "bfloat16 and scores that are capped": ({"dtype": jnp.bfloat16, "T": 21}, 2.0),
}


@pytest.mark.parametrize("name", CASES)
def test_both_passes_compute_the_definition_with(name):
    sizes, softcap = CASES[name]
    agree(kernel(SMALL), random(**sizes), Mask(causal=True), softcap=softcap)


def test_blocks_of_queries_and_keys_need_not_be_equal():
    sizes = Tiles(Tile(16, 32), Tile(32, 16), Tile(16, 64))
    agree(kernel(sizes), random(T=70, S=90), Mask(causal=True, window=40))


@pytest.mark.parametrize("scale", [-0.3, 0.0])
def test_a_scale_need_not_be_positive(scale):
    agree(kernel(SMALL), random(T=20, S=20), Mask(causal=True), scale=scale)


def test_a_part_of_the_keys_has_its_part_of_the_gradients():
    """As a ring of devices asks for them: lse and delta are those of all keys."""
    q, k, v, grad = inputs = random(S=40)
    mask, static = Mask(), Static(Mask(), 0.3, None)
    _, _, dq, dk, dv = definition(inputs, mask, 0.3, None)
    passes = kernel(SMALL)
    with interpreted():
        out, lse = passes.forward(q, k, v, operands(mask, 2, 40, 40), static)
        found = [
            passes.backward(
                *(q, k[:, part], v[:, part], operands(mask, 2, 40, 20), static),
                *(lse, delta(out, grad), grad),
            )
            for part in (slice(0, 20), slice(20, 40))
        ]
    (dq_0, dk_0, dv_0), (dq_1, dk_1, dv_1) = found
    for x, y in (
        (dq_0 + dq_1, dq),
        (np.concatenate([dk_0, dk_1], axis=1), dk),
        (np.concatenate([dv_0, dv_1], axis=1), dv),
    ):
        assert np.abs(x - y).max() <= TOLERANCE[jnp.float32] * np.abs(y).max()


LENGTHS = jnp.array([[60], [17]])
CACHES = {
    "one query against rows of two lengths": (
        {"T": 1, "S": 70},
        Mask(kv_valid=jnp.arange(70)[None] < LENGTHS),
    ),
    "three queries at the end of two lengths": (
        {"T": 3, "S": 70, "N": 6},
        Mask(
            causal=True,
            q_positions=LENGTHS - 3 + jnp.arange(3),
            kv_positions=jnp.arange(70)[None],
            kv_valid=jnp.arange(70)[None] < LENGTHS,
        ),
    ),
    "a ring of which positions say the order, with a window": (
        {"T": 1, "S": 64, "dtype": jnp.bfloat16},
        Mask(
            causal=True,
            window=20,
            q_positions=jnp.array([[130], [70]]),
            kv_positions=jnp.stack([(jnp.arange(64) - p - 1) % 64 + p - 63 for p in (130, 70)]),
        ),
    ),
    "no data": ({"T": 2, "S": 50, "N": 8}, Mask(causal=True)),
    "nothing visible in a row": (
        {"T": 1, "S": 48},
        Mask(kv_valid=jnp.array([[True] * 48, [False] * 48])),
    ),
}


@pytest.mark.parametrize("name", CACHES)
def test_decoding_computes_the_definition_with(name):
    sizes, mask = CACHES[name]
    forward = triton_decode.kernel(kv=16, splits=3).forward
    agree(Kernel(forward, kernel(SMALL).backward), random(**sizes), mask, softcap=2.0)


def test_decoding_need_not_be_split():
    agree(triton_decode.kernel(splits=1), random(T=1, S=20), Mask())


def test_decoding_takes_few_queries_and_says_so():
    def reason(T):
        q, k = (jax.ShapeDtypeStruct((1, T, n, 64), jnp.bfloat16) for n in (32, 8))
        return triton_decode.why_not(Case("gpu", q, k, Mask(), False, None))

    assert reason(1) is None and reason(16) is None
    assert reason(17) == "17 queries of 4 heads a key head are more than 64 rows"


def test_decoding_reads_from_the_first_to_the_last_block_that_a_row_sees():
    code = np.array([[0, 1, 2, 0], [2, 0, 1, 0], [0, 0, 0, 0]])
    table = np.array([[1, 3], [0, 3], [4, 0]])
    np.testing.assert_array_equal(triton_decode.span(code), table)
    np.testing.assert_array_equal(triton_decode.span(jnp.asarray(code)), table)


def test_a_row_of_blocks_visits_its_longest_run_and_the_others_that_are_not_hidden():
    code = np.array([[[2, 2, 2, 1, 0, 0, 1], [0, 1, 2, 0, 2, 2, 2], [0, 0, 0, 0, 0, 0, 0]]])
    table, has_run, has_others = visits(code, ragged=False)
    first, stop, count = np.moveaxis(table[0, :, :3], 1, 0)
    assert has_run and has_others
    assert (first[0], stop[0], list(table[0, 0, 3:])[: count[0]]) == (0, 3, [3, 6])
    assert (first[1], stop[1], list(table[0, 1, 3:])[: count[1]]) == (4, 7, [1, 2])
    assert (stop[2] - first[2], count[2]) == (0, 0)
    np.testing.assert_array_equal(visits(jnp.asarray(code), False)[0][..., : table.shape[2]], table)


def test_a_last_block_that_is_not_full_is_masked():
    table, has_run, has_others = visits(np.full((1, 1, 3), 2), ragged=True)
    assert has_run and has_others
    np.testing.assert_array_equal(table, [[[0, 2, 1, 2]]])


def test_a_mask_of_structure_alone_visits_few_blocks_one_by_one():
    from llama_jax.kernels.attention.block_mask import Operands, codes

    code = codes(Mask(causal=True), Operands(), 1024, 1024, 128, 64)
    table, _, _ = visits(code, ragged=False)
    assert table.shape == (1, 8, 3 + 2)  # the two on the diagonal
    np.testing.assert_array_equal(table[0, :, 1], 2 * np.arange(8) + (np.arange(8) == 0))


def test_every_tile_is_of_powers_of_two():
    for H in (16, 64, 80, 88, 128, 256):
        for dtype in (jnp.bfloat16, jnp.float32):
            for tile in dataclasses.astuple(tiles(H, dtype)):
                assert all(size & (size - 1) == 0 and size >= 16 for size in tile[:2])


def test_what_cannot_be_taken_is_said_with_its_numbers():
    def reason(H=64, dtype=jnp.bfloat16, mask=None, bias=False):
        x = jax.ShapeDtypeStruct((4, 32768, 8, H), dtype)
        return why_not(Case("gpu", x, x, mask or Mask(), bias, None))

    assert reason() is None
    assert "320" in (reason(H=320) or "")
    assert "float64" in (reason(dtype=np.dtype("float64")) or "")
    assert "bias" in (reason(bias=True) or "")
    assert "2 parts" in (reason(mask=Mask(parts=(4, 7))) or "")
    allow = jax.eval_shape(lambda: Mask(allow=jnp.zeros((4, 32768, 32768), bool)))
    assert "32768 x 32768" in (reason(mask=allow) or "")
