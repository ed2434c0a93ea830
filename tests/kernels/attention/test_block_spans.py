"""Intervals of blocks, against the codes of every block."""

import jax.numpy as jnp
import numpy as np
import pytest

from llama_jax.kernels.attention.block_mask import HIDDEN, PARTLY, WHOLE, Operands, codes
from llama_jax.kernels.attention.block_spans import spans
from llama_jax.kernels.attention.mask import Mask

MASKS = {
    "all": Mask(),
    "causal": Mask(causal=True),
    "window": Mask(window=5),
    "wide window": Mask(causal=True, window=21),
    "window of one": Mask(window=1),
    "chunk": Mask(causal=True, chunk=6),
    "whole chunk": Mask(chunk=16),
    "chunk and window": Mask(causal=True, chunk=12, window=7),
}
SHAPES = [(40, 40, 8, 8), (20, 57, 8, 16), (57, 20, 16, 8), (9, 70, 16, 4), (70, 9, 4, 16)]


def coded(found):
    """The codes that spans stand for."""
    y = np.arange(found.others)
    low, high, first, stop = (np.asarray(x)[:, :, None] for x in found.ordered()[:4])
    whole = (y >= first) & (y < stop)
    return np.where((y >= low) & (y < high), np.where(whole, WHOLE, PARTLY), HIDDEN)


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", MASKS)
def test_intervals_stand_for_the_codes_of_all_blocks_both_ways(name, shape, padded):
    wanted = np.array(codes(MASKS[name], Operands(), *shape))
    if padded:
        wanted[:, :, -1] = np.minimum(wanted[:, :, -1], PARTLY)
    found = spans(MASKS[name], None, *shape, padded=padded)
    assert isinstance(found.low, np.ndarray)
    np.testing.assert_array_equal(coded(found), wanted)
    np.testing.assert_array_equal(coded(found.turned()), wanted.swapaxes(1, 2))
    some = slice(1, 3)
    part = coded(found.some(some).turned())
    np.testing.assert_array_equal(part, wanted[:, some].swapaxes(1, 2))


@pytest.mark.parametrize("mask", [Mask(causal=True), Mask(causal=True, window=9, chunk=24)])
@pytest.mark.parametrize("shape", SHAPES)
def test_a_prefix_of_each_row_widens_its_intervals(mask, shape):
    prefix = jnp.asarray([0, 7, 16, 1000])
    wanted = codes(mask, Operands(prefix=prefix), *shape)
    found = spans(mask, prefix, *shape)
    np.testing.assert_array_equal(coded(found), wanted)
    np.testing.assert_array_equal(coded(found.turned()), np.swapaxes(wanted, 1, 2))
