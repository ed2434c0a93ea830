"""Mask: each part written out, their combination, and what is refused."""

import jax.numpy as jnp
import numpy as np
import pytest

from llama_jax.kernels.attention.mask import Mask


def matrix(text):
    return np.array([[int(c) for c in row] for row in text.split()], bool)[None]


def test_causal_shows_the_past_and_the_present():
    np.testing.assert_array_equal(Mask(causal=True).dense(3, 3), matrix("100 110 111"))


def test_a_window_hides_keys_older_than_its_size():
    found = Mask(causal=True, window=2).dense(4, 4)
    np.testing.assert_array_equal(found, matrix("1000 1100 0110 0011"))


def test_a_window_without_causal_looks_both_ways():
    np.testing.assert_array_equal(Mask(window=2).dense(4, 4), matrix("1100 1110 0111 0011"))


def test_a_chunk_hides_the_chunks_before():
    found = Mask(causal=True, chunk=2).dense(5, 5)
    np.testing.assert_array_equal(found, matrix("10000 11000 00100 00110 00001"))


def test_a_prefix_is_seen_by_all():
    found = Mask(causal=True, prefix=jnp.array([2])).dense(4, 4)
    np.testing.assert_array_equal(found, matrix("1100 1100 1110 1111"))


def test_segments_do_not_see_each_other():
    segments = jnp.array([[1, 1, 2]])
    found = Mask(q_segments=segments, kv_segments=segments).dense(3, 3)
    np.testing.assert_array_equal(found, matrix("110 110 001"))


def test_positions_place_queries_in_a_longer_past():
    mask = Mask(
        causal=True, q_positions=jnp.array([[2, 3]]), kv_positions=jnp.array([[0, 1, 2, 3]])
    )
    np.testing.assert_array_equal(mask.dense(2, 4), matrix("1110 1111"))


def test_and_holds_both():
    both = (
        Mask(causal=True) & Mask(window=3) & Mask(window=2, kv_valid=jnp.array([[1, 0, 1]], bool))
    )
    np.testing.assert_array_equal(both.dense(3, 3), matrix("100 100 001"))


def test_rows_are_the_rows_of_the_dense_mask():
    mask = Mask(causal=True, window=3, allow=jnp.arange(30).reshape(1, 5, 6) % 4 > 0)
    whole = mask.dense(5, 6)
    np.testing.assert_array_equal(mask.rows(2, 3, 5).dense(3, 6), whole[:, 2:5])


@pytest.mark.parametrize("name", ["window", "chunk"])
def test_zero_length_is_refused(name):
    with pytest.raises(ValueError, match=f"{name}=0 hides every key"):
        Mask(**{name: 0})


def test_half_of_the_segments_is_refused():
    with pytest.raises(ValueError, match="come together"):
        Mask(q_segments=jnp.zeros((1, 2), int))


def test_two_sets_of_segments_are_refused():
    segments = jnp.zeros((1, 2), int)
    mask = Mask(q_segments=segments, kv_segments=segments)
    with pytest.raises(ValueError, match="both masks give"):
        mask & mask
