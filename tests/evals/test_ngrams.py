"""Trigram models: probabilities that sum to one, by hand, and better than what is simpler."""

import numpy as np
import pytest

from llama_jax.evals.ngrams import (
    AROUND,
    LEFT,
    RIGHT,
    SIDES,
    Trigram,
    Trigrams,
    following,
    masked,
    perplexity,
    sequences,
    unhidden,
)

V = 7


def rows(count=40, seed=0):
    """Texts in which a token is mostly the sum of the two before it."""
    rng = np.random.default_rng(seed)
    found = []
    for _ in range(count):
        row = [*rng.integers(V, size=2)]
        for _ in range(30):
            row.append(rng.integers(V) if rng.random() < 0.2 else (row[-1] + row[-2]) % V)
        found.append(np.array(row))
    return found


def everywhere(texts):
    return [(row, np.arange(len(row)), row) for row in texts]


@pytest.mark.parametrize("offsets", SIDES)
def test_probabilities_sum_to_one_after_every_context(offsets):
    model = Trigram(rows(3), offsets, V)
    for far in range(V + 1):
        for near in range(V + 1):  # also ones that were never seen
            p = model(np.full((V, 2), (far, near)), np.arange(V))
            assert p.min() > 0 and p.sum() == pytest.approx(1)


def test_kneser_ney_by_hand():
    # a b c, a b c, d b a: after (a, b) came c twice; b was followed by two kinds, c and a.
    a, b, c, d = range(4)
    texts = [np.array(t) for t in ([a, b, c], [a, b, c], [d, b, a])]
    model = Trigram(texts, LEFT, 4)
    three, two, one = (level.discount for level in model.levels)
    # Of trigrams three came once and three twice; of bigrams all of six; of tokens a, b, c, d
    # there are 2, 2, 1, 1 kinds of bigram that end in it.
    assert (three, two, one) == pytest.approx((4 / 11, 7 / 8, 3 / 8))
    unigram = np.array([(k - one) / 6 + one * 4 / 6 / 4 for k in (2, 2, 1, 1)])
    after_b = np.array([0.5, 0, 0.5, 0]) - two / 2 * np.array([1, 0, 1, 0]) + two * unigram
    after_ab = np.array([0, 0, (2 - three) / 2, 0]) + three / 2 * after_b
    found = model(np.full((4, 2), (a, b)), np.arange(4))
    np.testing.assert_allclose(found, after_ab, rtol=1e-12)
    np.testing.assert_allclose(model(np.full((4, 2), (c, b)), np.arange(4)), after_b, rtol=1e-12)


def test_two_sides_tell_more_than_one_and_one_more_than_none():
    train, test = rows(400), everywhere(rows(50, seed=1))
    left, right, both = (
        perplexity(Trigrams(train, contexts, V), test) for contexts in ([LEFT], [RIGHT], SIDES)
    )
    assert both < left < 4 < V and both < right
    usual = np.bincount(np.concatenate(train)) / sum(map(len, train))
    alone = np.exp(-np.mean(np.log(usual[np.concatenate([row for row, _, _ in test])])))
    assert left < 0.6 * alone


def test_shares_of_a_mixture_prefer_what_tells_more():
    model = Trigrams(rows(400), (LEFT, AROUND, (-9, -8)), V)
    assert model.shares.sum() == pytest.approx(1) and model.shares[2] < 0.1


def test_what_is_never_predicted_has_no_share_and_is_read_all_the_same():
    texts = [np.concatenate([[0], row + 1, [1]]) for row in rows(20)]
    model = Trigram(texts, LEFT, V + 1, least=2)
    context = np.full((V - 1, 2), (V + 1, 0))  # at the beginning: beyond the end, then a 0
    assert model(context, np.arange(2, V + 1)).sum() == pytest.approx(1)


def test_examples_of_masked_and_of_following_tokens():
    batch = {
        "text": np.array([[5, 1, 6, 9, 0]]),
        "text_valid": np.array([[True] * 4 + [False]]),
        "mlm_positions": np.array([[1, 3, 0]]),
        "mlm_targets": np.array([[7, 9, 0]]),
        "mlm_weights": np.array([[1.0, 1, 0]]),
    }
    assert unhidden(batch)[0].tolist() == [5, 7, 6, 9]
    assert [len(at) for _, at, _ in masked(batch | {"row_valid": np.array([0.0])})] == [0]
    ((row, at, tokens),) = masked(batch)
    assert (row.tolist(), at.tolist(), tokens.tolist()) == ([5, 1, 6, 9], [1, 3], [7, 9])
    batch = {
        "tokens": np.array([[2, 5, 6, 0]]),
        "targets": np.array([[5, 6, 3, 0]]),
        "loss_weights": np.array([[1.0, 1, 1, 0]]),
    }
    assert sequences(batch)[0].tolist() == [2, 5, 6, 3]
    ((row, at, tokens),) = following(batch)
    assert (row[at].tolist(), tokens.tolist()) == ([5, 6, 3], [5, 6, 3])
    assert row[at - 1].tolist() == [2, 5, 6]
