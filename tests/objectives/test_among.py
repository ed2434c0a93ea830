"""What a decoder writes after pictures among its words: the loss, and that it is learned."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from llama_jax.objectives import AmongLM
from llama_jax.objectives.base import losses
from tests.models.early import MARKS, config

ASKED, ANSWERS = [1, *MARKS.layout((1, 1), 4), 5], (8, 9)
TOLERANCE = 1e-5  # float32: the mean of two losses near 4, formed in another order


@pytest.fixture(scope="module")
def fields():
    """Two pictures, of which the same is asked and another answer is right."""
    texts = np.array([[*ASKED, answer] for answer in ANSWERS], np.int32)
    pixels = np.random.default_rng(0).normal(size=(2, 1, 16, 16, 3)).astype(np.float32)
    weights = np.zeros((2, len(ASKED)), np.float32)
    weights[:, -1] = 1
    at = np.tile(np.flatnonzero(np.array(ASKED) == MARKS.patch), (2, 1)).astype(np.int32)
    given = {"tokens": texts[:, :-1], "targets": texts[:, 1:], "loss_weights": weights}
    return given | {"pixels": pixels, "at": at}


@pytest.fixture(scope="module")
def model():
    return config().build()


@pytest.fixture(scope="module")
def params(model, fields):
    given = (jnp.asarray(fields[name]) for name in ("tokens", "pixels", "at"))
    return nn.unbox(jax.jit(model.init)(jax.random.key(0), *given))


@pytest.fixture(scope="module")
def loss(model):
    total = losses({"lm": AmongLM(on="seen")})

    def compute(params, fields):
        return nn.apply(total, model)(params, {"seen": fields}, jax.random.key(0))[0]

    return jax.jit(jax.value_and_grad(compute))


def test_the_loss_is_that_of_the_answers_with_their_pictures_in_place(model, params, loss, fields):
    logits = model.apply(params, *(fields[name] for name in ("tokens", "pixels", "at")))
    scores = jax.nn.log_softmax(logits[:, -1])
    wanted = -np.mean([scores[row, answer] for row, answer in enumerate(ANSWERS)])
    assert abs(float(loss(params, fields)[0]) - wanted) < TOLERANCE


def test_every_part_of_the_model_learns(params, loss, fields):
    _, gradients = loss(params, fields)
    still = [
        jax.tree_util.keystr(path)
        for path, value in jax.tree_util.tree_leaves_with_path(gradients)
        if not np.abs(value).max() > 0
    ]
    assert not still


def test_answers_that_only_the_pictures_tell_apart_are_learned(params, loss, fields):
    adam = optax.adam(1e-2)
    state = adam.init(params)
    for _ in range(40):
        _, gradients = loss(params, fields)
        updates, state = adam.update(gradients, state)
        params = optax.apply_updates(params, updates)
    assert float(loss(params, fields)[0]) < 0.1  # without the pictures it is log 2 at best
    others = fields | {"pixels": fields["pixels"][::-1]}
    assert float(loss(params, others)[0]) > 1
