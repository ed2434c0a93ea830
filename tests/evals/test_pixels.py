"""Masked image modelling is judged beside the mean of what is visible."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest

from llama_jax.evals import Pixels, evaluations
from llama_jax.evals.report import written
from llama_jax.models.tokens import Tokens, text_positions
from llama_jax.objectives import MIM

from .conftest import Oracle


class Grey(Oracle):
    """Hides nothing and says of four patches a picture that each is grey."""

    patch = (1, 4)

    def hide(self, video, hidden_IP):
        return video

    def encode_image(self, pixels, valid=None):
        x = jnp.zeros((len(pixels), 4, 4))
        return Tokens(x, jnp.ones(x.shape[:2], bool), text_positions(*x.shape[:2]))

    def pixels(self, x_BTD):
        return jnp.zeros((*x_BTD.shape[:2], 48))


def test_grey_is_wrong_by_the_square_of_colours_and_the_visible_patches_are_right(trained):
    state = trained({"mim": MIM("captions", rate=0.5, normalise=False)})
    oracle = state.model
    grey = Grey(oracle.tokens, oracle.names, oracle.vocab)
    assert evaluations(state.run) == [Pixels("mim", "captions")]
    (row,) = Pixels("mim", "captions", batch=4).rows(dataclasses.replace(state, model=grey))
    assert (row.name, row.count, row.baseline_name) == (
        "mim_error",
        12,
        "mean of the visible patches",
    )
    darker = (np.array([246, 0, 0]) / 127.5 - 1) ** 2
    assert row.value == pytest.approx((4 + 2 * darker.mean()) / 6, rel=1e-5)
    assert row.baseline == pytest.approx(0, abs=1e-6)
    assert written(row.name, row.value) == f"{row.value:.3f}"
