"""What needs no weights, by hand; beside scikit-learn in tests/tasks."""

import pytest

from llama_jax.errors import UserError
from llama_jax.evals import baselines
from llama_jax.evals.baselines import said

TRAIN = [
    {"source": "delete this page", "target": "diese Seite löschen"},
    {"source": "add a page", "target": "eine Seite hinzufügen"},
    {"source": "log out", "target": "abmelden"},
    {"source": "sign out", "target": "abmelden"},
]
SOURCES = ["delete these pages", "add pages", "sign in", "这"]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("most_frequent", ["abmelden"] * 4),
        ("copy", SOURCES),
        # Nothing is like the last one: the first text of all.
        ("nearest", [TRAIN[i]["target"] for i in (0, 1, 3, 0)]),
        ("naive_bayes", [TRAIN[i]["target"] for i in (0, 1, 3, 3)]),
    ],
)
def test_what_a_baseline_says(name, expected):
    assert said(name, TRAIN, SOURCES) == expected


def test_the_lead_is_the_first_eight_words():
    assert said("lead", TRAIN, ["a b c d e f g h i j", "a  b"]) == ["a b c d e f g h", "a b"]


def test_neighbours_are_the_same_with_few_dense_pieces_and_in_small_parts(monkeypatch):
    sources = [f"{row['source'][i:]} {i}" for row in TRAIN for i in range(5)]
    whole = said("nearest", TRAIN, sources)
    monkeypatch.setattr(baselines, "DENSE", 3)
    monkeypatch.setattr(baselines, "AT_ONCE", 7)
    assert said("nearest", TRAIN, sources) == whole


def test_naive_bayes_weighs_labels_by_their_frequency():
    train = [{"source": "x", "target": "no"}] + [{"source": "x", "target": "yes"}] * 2
    assert said("naive_bayes", train, ["x", "y", ""]) == ["yes"] * 3


@pytest.mark.parametrize(
    ("name", "train", "text"),
    [("nearst", TRAIN, "Did you mean 'nearest'"), ("copy", [], "no training rows")],
)
def test_a_baseline_that_cannot_be_is_named(name, train, text):
    with pytest.raises(UserError, match=text):
        said(name, train, ["x"])
