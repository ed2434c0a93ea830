"""Finite scalar quantisation against its definition."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from llama_jax.errors import UserError
from llama_jax.models.fsq import FSQ

SETS = [(8, 6, 5), (8, 5, 5, 5), (3,), (2, 2)]


@pytest.mark.parametrize("levels", SETS)
def test_every_word_is_its_own_vector_and_back(levels):
    quantise = FSQ(levels)
    index = jnp.arange(quantise.codes)
    vectors = quantise.levels_of(index)
    assert len(np.unique(vectors, axis=0)) == quantise.codes == np.prod(levels)
    assert np.array_equal(quantise.index(vectors), index)
    assert vectors.min() == -1 and vectors.max() <= 1


@pytest.mark.parametrize("levels", SETS)
def test_all_words_and_no_others_are_reached(levels):
    """Each number goes through all of its levels as its input goes from -9 to 9."""
    quantise = FSQ(levels)
    z = jnp.broadcast_to(jnp.linspace(-9, 9, 2001)[:, None], (2001, len(levels)))
    whole = np.array(quantise(z) * (np.array(levels) // 2) + np.array(levels) // 2)
    for column, count in zip(whole.T, levels, strict=True):
        assert np.allclose(np.unique(np.round(column, 4)), np.arange(count))
        assert (np.diff(column) >= 0).all()


def test_a_vector_becomes_the_nearest_levels_of_its_bounded_self():
    z = np.random.default_rng(0).normal(size=(50, 2)).astype(np.float32)
    odd = np.round(np.tanh(z[:, 1]) * 2 * 1.001) / 2  # five levels around 0
    even = np.round(np.tanh(z[:, 0] + np.arctanh(0.5 / (3.5 * 1.001))) * 3.5 * 1.001 - 0.5) / 4
    assert np.allclose(FSQ((8, 5))(jnp.asarray(z)), np.stack([even, odd], 1))


def test_gradients_pass_as_if_nothing_had_been_rounded():
    quantise = FSQ((5, 8))
    z = jnp.array([[0.3, -0.7]])
    found = jax.grad(lambda z: jnp.sum(quantise(z)))(z)
    odd = (1 - np.tanh(0.3) ** 2) * 2.002 / 2
    even = (1 - np.tanh(-0.7 + np.arctanh(0.5 / 3.5035)) ** 2) * 3.5035 / 4
    assert np.allclose(found, [[odd, even]], rtol=1e-5)


def test_zero_stays_in_the_middle():
    for levels in itertools.chain(SETS, [(4, 4)]):
        assert np.allclose(FSQ(levels)(jnp.zeros((1, len(levels)))), 0)


@pytest.mark.parametrize("levels", [(), (8, 1), (1 << 11, 1 << 11)])
def test_levels_that_make_no_code_book_are_refused(levels):
    with pytest.raises(UserError, match=r"levels=.*such as \(8, 5, 5, 5\)"):
        FSQ(levels)
