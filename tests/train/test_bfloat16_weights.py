"""A run whose weights and moments are bfloat16: it learns, goes on to the bit, and is loaded."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from llama_jax.optim.optimizer import AdamW, Constant
from llama_jax.train.load import load
from llama_jax.train.loop import train
from llama_jax.weights.orbax import saved_steps
from tests.train.steps import first_steps
from tests.train.test_meshes import decoder_run
from tests.train.tiny import STEPS, losses, text_run

pytestmark = pytest.mark.usefixtures("compiled_once")
HALF = AdamW(1e-2, Constant(), mu_dtype="bfloat16", nu_dtype="bfloat16")
# Rounded weights are off by 2^-9, each otherwise; a loss over hundreds of tokens by less than this.
CLOSE = 2**-5


def half(text, **changes):
    return text_run(text, param_dtype="bfloat16", optimizer=HALF, **changes)


@pytest.fixture(scope="module")
def trained(tmp_path_factory, text):
    place = tmp_path_factory.mktemp("half")
    train(half(text), place, progress=False)
    return place


def test_it_learns_as_the_run_in_float32_does(trained, uninterrupted):
    mine, theirs = ([*map(float, losses(p).values())] for p in (trained, uninterrupted))
    assert mine[-1] < mine[0] - 0.5
    np.testing.assert_allclose(mine, theirs, rtol=CLOSE)
    assert mine != theirs


def test_it_goes_on_from_its_checkpoint_to_the_last_bit(trained, text, tmp_path):
    train(half(text, steps=6), tmp_path, progress=False)
    train(half(text), tmp_path, progress=False)
    assert losses(tmp_path) == losses(trained)


def test_its_matrices_are_saved_in_bfloat16_and_loaded(trained):
    found = load(trained)
    assert found.step == STEPS == max(saved_steps(trained / "checkpoints"))
    kinds = {x.dtype for x in jax.tree.leaves(found.params)}
    assert jnp.dtype("bfloat16") in kinds
    assert all(
        np.all(np.isfinite(np.asarray(x, np.float32))) for x in jax.tree.leaves(found.params)
    )


def test_micro_batches_add_their_gradients_up_in_float32(text):
    run = decoder_run(text)
    fields = {"param_dtype": "bfloat16", "optimizer": HALF}
    one, four = (
        first_steps(dataclasses.replace(run, **fields, accumulate=n), 6, jax.devices()[:1]).losses
        for n in (1, 4)
    )
    np.testing.assert_allclose(one, four, rtol=CLOSE)
