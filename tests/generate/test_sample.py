"""Each rule of sampling against its definition in NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from llama_jax.errors import UserError
from llama_jax.generate.sample import Sampling

V, DRAWS = 12, 4000
LOGITS = np.linspace(-2, 2, V)[np.random.default_rng(0).permutation(V)].astype(np.float32)


def frequencies(sampling, seen=None):
    rows = jnp.broadcast_to(LOGITS, (DRAWS, V))
    seen = None if seen is None else jnp.broadcast_to(seen, (DRAWS, V))
    ids = jax.jit(sampling.__class__.__call__)(sampling, rows, jax.random.key(0), seen)
    return np.bincount(np.asarray(ids), minlength=V) / DRAWS


def softmax(x):
    p = np.exp(x - x.max())
    return p / p.sum()


def cut(p, kept):
    p = np.where(kept, p, 0)
    return p / p.sum()


P = softmax(LOGITS / 1.3)
RANK = np.argsort(np.argsort(-P))
CASES = {
    "temperature": ({}, P),
    "top_k": ({"top_k": 3}, cut(P, RANK < 3)),
    "top_p": ({"top_p": 0.6}, cut(P, np.array([P[RANK < r].sum() < 0.6 for r in RANK]))),
    "min_p": ({"min_p": 0.3}, cut(P, P >= 0.3 * P.max())),
}


@pytest.mark.parametrize("name", CASES)
def test_tokens_are_drawn_with_the_probabilities_of_the_rule(name):
    fields, expected = CASES[name]
    found = frequencies(Sampling(temperature=1.3, **fields))
    assert set(np.flatnonzero(found)) <= set(np.flatnonzero(expected))
    # Four standard deviations of a share of DRAWS.
    np.testing.assert_allclose(found, expected, atol=4 * (0.25 / DRAWS) ** 0.5)


def test_a_penalty_divides_positive_logits_and_multiplies_negative_ones():
    seen = np.arange(V) % 2 == 0
    scaled = np.where(seen, np.where(LOGITS > 0, LOGITS / 2, LOGITS * 2), LOGITS)
    found = frequencies(Sampling(repetition_penalty=2.0, temperature=1.0), seen)
    np.testing.assert_allclose(found, softmax(scaled), atol=4 * (0.25 / DRAWS) ** 0.5)


def test_one_program_serves_all_temperatures():
    compiled = []

    @jax.jit
    def draw(sampling, logits, key):
        compiled.append(sampling)
        return sampling(logits, key)

    for temperature in (0.5, 0.7, 2.0):
        draw(
            Sampling(temperature=temperature, top_p=temperature / 4),
            LOGITS[None],
            jax.random.key(0),
        )
    assert len(compiled) == 1
    draw(Sampling(), LOGITS[None], jax.random.key(0))  # greedy is another program
    assert len(compiled) == 2


@pytest.mark.parametrize(
    "field, value",
    [
        ("temperature", -1),
        ("temperature", float("nan")),
        ("temperature", float("inf")),
        ("top_k", -1),
        ("top_p", 0),
        ("top_p", 1.5),
        ("min_p", 1),
        ("repetition_penalty", 0),
    ],
)
def test_a_number_out_of_range_is_refused_by_name(field, value):
    with pytest.raises(UserError, match=f"{field}="):
        Sampling(**{field: value})
