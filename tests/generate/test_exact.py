"""Numbers that generation gives are those of whole sequences, on one device and on four.

Log-probabilities of `complete` against a full forward pass over the same tokens, in float32, for
prompts of different lengths in one batch.
"""

import jax
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from llama_jax.generate.engine import Engine
from llama_jax.generate.lm import LM
from tests.generate import small

# float32 logits of order 10 through two layers; a cache and a mesh sum in other orders.
TOLERANCE = 1e-5
NEW = 24
# Shorter than a chunk, as long, longer, and of several chunks; the whole within the context of 200.
PROMPTS = [[7], list(range(5, 37)), list(range(3, 50)), [i * 7 % 290 for i in range(170)]]
LAYOUTS = [{}, {"tensor": 2, "data": 2}, {"tensor": 2}]


@pytest.fixture(scope="module")
def whole():
    """Scores of sequences by the model on one device, without a cache."""
    engine = small.lm().engine

    def score(ids):
        logits = np.asarray(engine.logits(np.array([ids])))[0, :-1].astype(np.float64)
        logits -= np.log(np.exp(logits).sum(-1, keepdims=True))
        return logits[np.arange(len(ids) - 1), ids[1:]], logits.argmax(-1)

    return score


@pytest.fixture(params=LAYOUTS, ids=str)
def lm(request, mesh):
    ways = request.param
    count = int(np.prod(list(ways.values())))
    devices = mesh(count, **({"data": 1} | ways))
    params = jax.device_put(small.params(), NamedSharding(devices, PartitionSpec()))
    return LM(Engine(small.MODEL.build(), params, devices), small.tokenizer(), "small")


def check(found, prompts, whole):
    for prompt, done in zip(prompts, found, strict=True):
        scores, best = whole([*prompt, *done.ids])
        start = len(prompt) - 1
        np.testing.assert_allclose(done.logprobs, scores[start:], atol=TOLERANCE, rtol=0)
        np.testing.assert_array_equal(done.ids, best[start:])


def test_a_batch_of_different_lengths_has_the_numbers_of_whole_sequences(lm, whole):
    check(lm.complete(PROMPTS, NEW), PROMPTS, whole)


def test_one_prompt_has_them_too(lm, whole):
    check(lm.complete([PROMPTS[2]], NEW), [PROMPTS[2]], whole)


def test_logits_and_log_probabilities_of_a_text_are_those_of_one_device(lm, whole):
    ids = PROMPTS[3]
    scores, _ = whole(ids)
    np.testing.assert_allclose(lm.logprobs(ids), scores, atol=TOLERANCE, rtol=0)
    logits = lm.logits([ids, ids[::-1]])[0, :-1].astype(np.float64)
    logits -= np.log(np.exp(logits).sum(-1, keepdims=True))
    found = logits[np.arange(len(ids) - 1), ids[1:]]
    np.testing.assert_allclose(found, scores, atol=TOLERANCE, rtol=0)


def test_sampled_tokens_have_their_own_log_probability_and_not_that_of_the_sampling(lm, whole):
    """Temperature and the like choose; `logprobs` says what the model thinks of the choice."""
    for done, prompt in zip(
        lm.complete(PROMPTS, NEW, temperature=2.0, top_p=0.9, seed=3), PROMPTS, strict=True
    ):
        scores, _ = whole([*prompt, *done.ids])
        np.testing.assert_allclose(done.logprobs, scores[len(prompt) - 1 :], atol=TOLERANCE, rtol=0)


def test_windows_of_a_long_text_score_as_each_window_alone(whole):
    """Half a window of context at least: what `LM.logprobs` says of texts beyond its window."""
    lm, ids = small.lm(), PROMPTS[3]
    scores = lm.logprobs(ids, window=64)
    assert len(scores) == len(ids) - 1
    expected = []
    while len(expected) < len(ids) - 1:
        start = max(0, min(len(expected) + 1 - 32, len(ids) - 64))
        expected.extend(whole(ids[start : start + 64])[0][len(expected) - start :])
    np.testing.assert_allclose(scores, expected, atol=TOLERANCE, rtol=0)
