"""Codes of blocks are never wrong about what a mask hides or shows, and exact where they can be."""

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llama_jax.kernels.attention.block_mask import HIDDEN, WHOLE, Operands, codes, operands, seen
from llama_jax.kernels.attention.mask import Mask

T, S, B = 10, 13, 2


def found(mask, q_block=4, kv_block=3):
    return np.asarray(codes(mask.structure, operands(mask, B, T, S), T, S, q_block, kv_block))


def tiles(mask, q_block=4, kv_block=3):
    """Whether any and whether all of each block is seen, by the definition."""
    dense = np.broadcast_to(mask.dense(T, S), (B, T, S))
    some, every = [], []
    for b in range(B):
        for t in range(0, T, q_block):
            for s in range(0, S, kv_block):
                tile = dense[b, t : t + q_block, s : s + kv_block]
                some.append(tile.any())
                every.append(tile.all())
    shape = (B, -(-T // q_block), -(-S // kv_block))
    return np.reshape(some, shape), np.reshape(every, shape)


PARTS = ("causal", "window", "chunk", "prefix", "place", "segment", "valid", "allow")


@st.composite
def masks(draw):
    """Any mask of B x T x S, its data drawn from a seed."""
    rng = np.random.default_rng(draw(st.integers(0, 2**31 - 1)))
    has = draw(st.sets(st.sampled_from(PARTS)))
    local = {
        "causal": "causal" in has,
        "window": draw(st.integers(1, 12)) if "window" in has else None,
        "chunk": draw(st.integers(1, 12)) if "chunk" in has else None,
    }
    data = {}
    if "prefix" in has and "causal" in has:
        data["prefix"] = rng.integers(0, S, B)
    if "place" in has and has & {"causal", "window", "chunk"}:
        data["q_positions"] = rng.integers(0, 20, (B, T))
        data["kv_positions"] = rng.integers(0, 20, (B, S))
    if "segment" in has:
        data["q_segments"] = np.sort(rng.integers(0, 3, (B, T)))
        data["kv_segments"] = np.sort(rng.integers(0, 3, (B, S)))
    if "valid" in has:
        data["kv_valid"] = rng.random((B, S)) < rng.random((B, 1))
    if "allow" in has:
        data["allow"] = rng.random((B, T, S)) < 0.8
    return Mask(**local, **{name: jnp.asarray(x) for name, x in data.items()})


@settings(max_examples=200, deadline=None)
@given(masks())
def test_hidden_blocks_hide_all_and_whole_blocks_show_all(mask):
    some, every = tiles(mask)
    code = np.broadcast_to(found(mask), some.shape)
    assert not (some & (code == HIDDEN)).any()
    assert not (~every & (code == WHOLE)).any()


@settings(max_examples=200, deadline=None)
@given(masks())
def test_a_block_s_entries_are_those_of_the_definition(mask):
    data = operands(mask, B, T, S)
    rows, columns = np.arange(T)[:, None], np.arange(S)[None]
    for b in range(B):
        q = Operands(
            rows if data.q_positions is None else data.q_positions[b][:, None],
            None,
            None if data.q_segments is None else data.q_segments[b][:, None],
            None,
            None if data.prefix is None else data.prefix[b],
            None if data.allow is None else data.allow[b],
        )
        kv = Operands(
            None,
            columns if data.kv_positions is None else data.kv_positions[b][None],
            None,
            None if data.kv_segments is None else data.kv_segments[b][None],
        )
        shown = seen(mask.structure, q, kv)
        expected = np.broadcast_to(mask.dense(T, S), (B, T, S))[b]
        np.testing.assert_array_equal(True if shown is None else shown, expected)


@pytest.mark.parametrize(
    "mask", [Mask(), Mask(causal=True), Mask(causal=True, window=5), Mask(causal=True, chunk=6)]
)
def test_structure_alone_gives_exact_codes_while_tracing(mask):
    code = codes(mask.structure, operands(mask, B, T, S), T, S, 2, 3)
    assert isinstance(code, np.ndarray)
    some, every = tiles(mask, 2, 3)
    np.testing.assert_array_equal(code[0] != HIDDEN, some[0])
    np.testing.assert_array_equal(code[0] == WHOLE, every[0])


def test_packed_documents_hide_the_blocks_between_them():
    segments = jnp.repeat(jnp.arange(4), 4)[None]
    mask = Mask(q_segments=segments, kv_segments=segments)
    code = codes(mask.structure, operands(mask, 1, 16, 16), 16, 16, 4, 4)
    np.testing.assert_array_equal(code[0], WHOLE * np.eye(4))


def test_keys_that_are_not_valid_hide_their_blocks():
    mask = Mask(kv_valid=jnp.arange(12)[None] < 5)
    code = codes(mask.structure, operands(mask, 1, 4, 12), 4, 12, 4, 4)
    np.testing.assert_array_equal(code, [[[WHOLE, 1, HIDDEN]]])
