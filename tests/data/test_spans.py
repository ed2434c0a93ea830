import numpy as np
import pytest

from llama_jax.data.spans import corrupt_spans, span_count, span_lengths
from llama_jax.errors import UserError


def rng(seed=0):
    return np.random.Generator(np.random.Philox(key=seed))


@pytest.mark.parametrize(
    ("inputs", "tokens", "targets"), [(512, 568, 114), (128, 141, 29), (1024, 1137, 229)]
)
def test_lengths_are_those_of_t5(inputs, tokens, targets):
    assert span_lengths(inputs) == (tokens, targets)


@pytest.mark.parametrize("inputs", [8, 20, 63, 64, 127, 128, 511])
def test_corruption_fills_the_row_exactly(inputs):
    tokens, targets = span_lengths(inputs)
    sentinels = range(1000, 1000 + span_count(tokens))
    for seed in range(5):
        left, right = corrupt_spans(np.arange(tokens), rng(seed), sentinels)
        assert len(left) + 1 <= inputs and len(right) + 1 == targets


@pytest.mark.parametrize("length", [1, 2, 3, 10, 57, 70])
@pytest.mark.parametrize("rate", [0.15, 0.5])
def test_holes_filled_give_the_text_back(length, rate):
    text = 16 + np.arange(length)
    for seed in range(20):
        inputs, targets = corrupt_spans(text, rng(seed), range(200, 240), rate)
        holes = {}
        for token in targets.tolist():
            if token >= 200:
                holes[token] = []
            else:
                holes[max(holes)].append(token)
        filled = [t for i in inputs.tolist() for t in (holes[i] if i >= 200 else [i])]
        assert filled == text.tolist()
        used = [i for i in inputs.tolist() if i >= 200]
        assert used == list(range(200, 200 + len(used))) == sorted(holes)
        assert all(holes.values())


def test_the_hidden_share_and_the_mean_span_are_as_asked():
    inputs, targets = corrupt_spans(np.arange(100), rng(), range(1000, 1040))
    assert (np.asarray(targets) < 1000).sum() == 15
    assert (np.asarray(inputs) >= 1000).sum() == 5


def test_too_few_sentinels_are_refused_with_the_number_needed():
    with pytest.raises(UserError, match="need 28 sentinels and the tokenizer has 10"):
        corrupt_spans(np.arange(568), rng(), range(6, 16))
