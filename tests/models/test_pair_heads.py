"""Heads of two segments, against their definition in NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from llama_jax.errors import UserError
from llama_jax.models.heads import PairHead
from llama_jax.models.pair_heads import ComparedPair, best
from llama_jax.models.tokens import Tokens, text_positions

from .small import ids, multimodal, start

# Sums of up to nine float32 numbers of size one.
TOLERANCE = 1e-5

B, T, D = 3, 9, 8
TYPES = np.array([[0, 0, 0, 1, 1, 1, 0, 0, 0], [0, 0, 1, 1, 1, 1, 1, 1, 1], [0] * 9], np.int32)
VALID = np.array([[1] * 6 + [0] * 3, [1] * 9, [1] * 4 + [0] * 5], bool)


def text(seed=0, valid=VALID):
    x = np.random.default_rng(seed).normal(size=(B, T, D)).astype(np.float32)
    return Tokens(jnp.asarray(x), jnp.asarray(valid), text_positions(B, T))


# Word vectors, some of which stand in both segments.
WORDS = np.random.default_rng(7).normal(size=(5, D), scale=0.1).astype(np.float32)
WORDS = jnp.asarray(WORDS[np.random.default_rng(8).integers(5, size=(B, T))])


def weights(config, seed=1):
    """Random ones, biases too, for at 0 a missing one would not show."""
    shapes = jax.eval_shape(
        config.build().init, jax.random.key(0), text(), WORDS, jnp.asarray(TYPES)
    )
    rng = np.random.default_rng(seed)
    params = {
        name: {k: rng.normal(size=leaf.value.shape).astype(np.float32) for k, leaf in part.items()}
        for name, part in shapes["params"].items()
    }
    return {"params": params}


def by_hand(params, tokens, row, sharpness=8.0):
    """The logits of one row, token by token."""
    x, valid = np.asarray(tokens.x[row]), np.asarray(tokens.valid[row])
    one, other = (np.flatnonzero(valid & (TYPES[row] == kind)) for kind in (0, 1))
    u, v = (x[at].mean(0) if len(at) else np.zeros(D) for at in (one, other))
    seen = [x[0], u, v, abs(u - v), u * v]
    if "like" in params:
        x = np.asarray(WORDS[row])
        x = x / np.sqrt(np.mean(x**2, axis=-1, keepdims=True) + 1e-6)
        z = x @ params["like"]["w"]
        z /= np.linalg.norm(z, axis=-1, keepdims=True)
        for here, there in ((one, other), (other, one)):
            total = np.zeros(params["weigh"]["w"].shape[1])
            for t in here:
                likest = max((z[t] @ z[s] for s in there), default=-1)
                total += np.exp(sharpness * (likest - 1)) * (1 + x[t] @ params["weigh"]["w"])
            seen.append(total / np.sqrt(max(len(here), 1)))
    h = np.tanh(np.concatenate(seen) @ params["pool"]["w"] + params["pool"]["b"])
    return h @ params["out"]["w"] + params["out"]["b"]


@pytest.mark.parametrize("config", [ComparedPair(width=5, sums=3), ComparedPair(sums=0)])
def test_two_segments_are_compared_by_means_and_matches(config):
    variables = weights(config)
    logits = config.build().apply(variables, text(), WORDS, jnp.asarray(TYPES))
    expected = [by_hand(variables["params"], text(), row) for row in range(B)]
    np.testing.assert_allclose(logits, expected, rtol=TOLERANCE, atol=TOLERANCE)
    assert ("like" in variables["params"]) == (config.sums > 0)


def test_padding_changes_nothing_and_a_text_of_one_segment_stays_finite():
    config = ComparedPair(width=5, sums=3)
    variables, tokens = weights(config), text()
    noise = jnp.where(VALID[..., None], tokens.x, 1e3), jnp.where(VALID[..., None], WORDS, 1e3)
    plain, noisy = (
        config.build().apply(variables, tokens.with_x(x), words, jnp.asarray(TYPES))
        for x, words in ((tokens.x, WORDS), noise)
    )
    np.testing.assert_array_equal(plain, noisy)

    def total(x):
        out = config.build().apply(variables, tokens.with_x(x), x, jnp.asarray(TYPES))
        return jnp.sum(out)

    assert np.isfinite(jax.grad(total)(jnp.zeros_like(tokens.x))).all()


def test_a_token_that_stands_in_both_segments_has_the_likeness_one():
    z = np.eye(6, dtype=np.float32)[[0, 1, 2, 3, 1, 4]][None]
    first = np.array([[1, 1, 1, 0, 0, 0]], bool)
    np.testing.assert_allclose(best(z, first, ~first)[0], [0, 1, 0, 0, 1, 0], atol=TOLERANCE)


def test_compared_segments_must_be_told_apart():
    with pytest.raises(UserError, match=r"no `text_types` that tell them apart; take the task"):
        ComparedPair().build().init(jax.random.key(0), text(), WORDS, None)


@pytest.mark.parametrize("pairs", [PairHead(), ComparedPair(width=5, sums=3)])
def test_a_model_hands_its_head_the_vectors_that_it_reads(pairs):
    model, read = multimodal(pairs=pairs).build(), ids(B, T)

    def both(model, read):
        tokens = model.encode_text(read, VALID, TYPES)
        words = model.table(read, jnp.float32)
        head = model.next_head
        args = (tokens.x[:, 0],) if isinstance(pairs, PairHead) else (tokens, words, TYPES)
        return model.next(tokens, read, TYPES), head(*args)

    variables, apply = start(both, model, read)
    np.testing.assert_array_equal(*apply(variables, read))


def test_a_head_that_reads_word_vectors_needs_the_shared_table():
    model = multimodal(pairs=ComparedPair(), shared=False).build()

    def ask(model, read):
        return model.next(model.encode_text(read), read, TYPES)

    with pytest.raises(UserError, match="ComparedPair reads the shared table"):
        start(ask, model, ids(B, T))
