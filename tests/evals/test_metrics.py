"""Metrics that need no package; the others are in tests/tasks, against these packages."""

import sys

import pytest

from llama_jax.errors import UserError
from llama_jax.evals.metrics import _scorer, figure

SAID = ["red", " blue", "blue", "grey", "red"]
RIGHT = ["red", "blue", "red", "blue", "green"]


@pytest.mark.parametrize("name", ["exact", "accuracy"])
def test_texts_that_are_the_same_but_for_blanks_around_are_right(name):
    value, low, high = figure(name, SAID, RIGHT)
    assert value == 0.4
    assert 0 <= low < 0.4 < high <= 1


def test_macro_f1_is_the_mean_over_labels():
    # Red: 1 of 2 said, 1 of 2 right; blue the same; green: never said. Grey is no label.
    assert figure("macro_f1", SAID, RIGHT)[0] == pytest.approx((0.5 + 0.5 + 0) / 3)


def test_a_label_that_a_sample_lacks_does_not_count_in_it():
    assert figure("macro_f1", RIGHT, RIGHT) == (1, 1, 1)


@pytest.mark.parametrize(
    ("name", "said", "text"),
    [("chrff", ["a"], "Did you mean 'chrf'"), ("exact", ["a", "b"], "2 texts said and 1 right")],
)
def test_what_cannot_be_judged_is_named(name, said, text):
    with pytest.raises(UserError, match=text):
        figure(name, said, ["a"])


@pytest.mark.parametrize("name", ["chrf", "bleu", "rouge_1", "rouge_l"])
def test_a_missing_package_is_named_with_its_extra(name, monkeypatch):
    for module in ("sacrebleu", "sacrebleu.metrics.helpers", "rouge_score.rouge_scorer"):
        monkeypatch.setitem(sys.modules, module, None)
    _scorer.cache_clear()
    with pytest.raises(UserError, match=r"sacrebleu|rouge-score.*llama-jax\[tasks\]"):
        figure(name, ["a"], ["a"])
