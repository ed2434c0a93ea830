"""bfloat16 is for products: weights and what is added to them stay float32."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from llama_jax.config import edit
from tests.train.steps import first_steps
from tests.train.test_meshes import alone, decoder_run

__all__ = ["alone"]  # the fixture
# bfloat16 has 8 bits: an activation is off by 2^-9, a loss over hundreds of tokens by less.
BFLOAT16 = 2**-7


@pytest.fixture(scope="module")
def half(text):
    run = edit(decoder_run(text), "dtype", "bfloat16")
    return first_steps(run, 20, jax.devices()[:1])


def test_training_in_bfloat16_follows_that_in_float32(half, alone):
    np.testing.assert_allclose(half.losses, alone.losses, rtol=BFLOAT16)
    assert half.losses != alone.losses  # it was computed otherwise


def test_weights_are_float32_and_hold_what_bfloat16_would_lose(half):
    weights = half.params
    assert {weight.dtype for weight in weights.values()} == {np.dtype("float32")}
    table = weights["decoder/embed/w"]
    assert np.any(table != np.asarray(jnp.asarray(table, jnp.bfloat16), np.float32))
