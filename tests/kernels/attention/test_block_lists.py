"""What kernels visit and hide, against the definition of a mask."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from llama_jax.kernels.attention.block_lists import RUNS, nth, shown, visits, ways
from llama_jax.kernels.attention.block_mask import (
    HIDDEN,
    PARTLY,
    WHOLE,
    Operands,
    codes,
    operands,
)
from llama_jax.kernels.attention.mask import Mask

B, T, S = 2, 20, 28
RNG = np.random.default_rng(0)
SEGMENTS = [jnp.asarray(np.sort(RNG.integers(0, 3, (B, n))), jnp.int32) for n in (T, S)]
POSITIONS = [jnp.asarray(RNG.permuted(np.tile(np.arange(n), (B, 1)), axis=1)) for n in (T, S)]
VALID = jnp.asarray(RNG.random((B, S)) < 0.7)
MASKS = {
    "all": Mask(),
    "causal": Mask(causal=True),
    "window": Mask(window=5),
    "causal window": Mask(causal=True, window=5),
    "chunk": Mask(causal=True, chunk=6),
    "whole chunk": Mask(chunk=8),
    "prefix": Mask(causal=True, prefix=jnp.array([0, 9])),
    "prefix window": Mask(causal=True, window=4, prefix=jnp.array([3, 12])),
    "positions": Mask(causal=True, q_positions=POSITIONS[0], kv_positions=POSITIONS[1]),
    "offset": Mask(causal=True, chunk=7, q_positions=jnp.arange(8, 8 + T)[None]),
    "negative": Mask(chunk=7, kv_positions=jnp.arange(-9, S - 9)[None]),
    "segments": Mask(causal=True, q_segments=SEGMENTS[0], kv_segments=SEGMENTS[1]),
    "valid": Mask(kv_valid=VALID),
    "nothing": Mask(kv_valid=jnp.zeros((1, S), bool)),
}


def read(mask, t, s):
    """Which keys a kernel shows, that reads what `shown` prepared for t x s."""
    x = shown(mask.structure, operands(mask, B, T, S), T, S, t, s)
    queries = [np.asarray(x.queries[:, i, :, None]) for i in range(x.queries.shape[1])]
    keys = [np.asarray(x.keys[:, i, None, :]) for i in range(x.kinds)]
    position = keys[0] if x.positions else np.arange(s)[None, None]
    seen = (position >= queries[0]) & (position < queries[1])
    return seen & (queries[2] == keys[-1]) if x.segments else seen


@pytest.mark.parametrize("name", MASKS)
def test_intervals_and_segments_show_what_the_mask_shows(name):
    mask = MASKS[name]
    found = read(mask, T + 4, S + 4)
    np.testing.assert_array_equal(
        np.broadcast_to(found[:, :T, :S], (B, T, S)),
        np.broadcast_to(mask.dense(T, S), (B, T, S)),
    )
    assert not found[:, :T, S:].any(), "no query sees a key that was padded"
    assert not found[:, T:].any(), "no padded query sees a key"


@pytest.mark.parametrize("name", MASKS)
def test_a_tile_visits_its_partly_seen_blocks_and_then_those_seen_whole(name):
    mask, q_block, kv_block = MASKS[name], 8, 8
    code = codes(mask.structure, operands(mask, B, T, S), T, S, q_block, kv_block)
    way = np.asarray(visits(code, padded=S % kv_block > 0))
    code = np.array(code)
    code[:, :, -1] = np.minimum(code[:, :, -1], PARTLY)
    for row, tile in np.ndindex(*way.shape[:2]):
        partly, seen = way[row, tile, :2]
        blocks = way[row, tile, 2:]
        kinds = code[row, tile]
        assert sorted(blocks[: len(kinds)]) == list(range(len(kinds)))
        blocks = blocks[: len(kinds)]
        assert (kinds[blocks[:partly]] == PARTLY).all()
        assert (kinds[blocks[partly:seen]] == WHOLE).all()
        assert (kinds[blocks[seen:]] == HIDDEN).all()


@pytest.mark.parametrize("by_keys", [False, True])
@pytest.mark.parametrize("name", MASKS)
def test_the_steps_of_a_tile_are_those_of_its_list(name, by_keys):
    mask, t, s = MASKS[name], 8, 8
    data = operands(mask, B, T, S)
    code = codes(mask.structure, data, T, S, t, s)
    listed = np.asarray(
        visits(code.swapaxes(1, 2), False) if by_keys else visits(code, padded=S % s > 0)
    )
    found = ways(mask.structure, data, T, S, t, s, by_keys)
    holes = any(x is not None for x in data._replace(prefix=None))
    assert (found.shape[2] == RUNS) == (not holes)
    found = np.asarray(found)
    np.testing.assert_array_equal(found[:, :, :2], listed[:, :, :2])
    for row, tile in np.ndindex(*found.shape[:2]):
        for n in range(found[row, tile, 1]):
            assert nth(found, row, tile, n) == listed[row, tile, 2 + n]


@pytest.mark.parametrize(
    "mask",
    [Mask(), Mask(causal=True), Mask(causal=True, window=4096), Mask(chunk=1 << 19)],
)
def test_what_is_stored_of_a_mask_without_holes_grows_with_the_length(mask):
    prefix = jnp.zeros(1, jnp.int32) if mask == Mask(causal=True) else None
    for data in (Operands(), Operands(prefix=prefix)):
        sizes = []
        for length in (1 << 19, 1 << 20):
            for by_keys in (False, True):
                shape = length, length, 128, 64
                way = jax.eval_shape(lambda: ways(mask, data, *shape, by_keys))  # noqa: B023
                sizes.append(way.size * 4)
        # Six numbers a tile: 196 and 393 KB; a list of a million keys is 537 MB.
        assert sizes == [24 << 12, 24 << 13, 24 << 13, 24 << 14]


def test_lists_without_data_are_constants():
    way = visits(codes(Mask(causal=True), operands(Mask(), 1, 32, 32), 32, 32, 8, 16), False)
    assert isinstance(way, np.ndarray)
    expected = [[1, 1, 0, 1], [1, 1, 0, 1], [1, 2, 1, 0], [1, 2, 1, 0]]
    np.testing.assert_array_equal(way, [expected])
