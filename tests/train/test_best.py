import dataclasses
import json
from collections.abc import Iterator

import pytest

from llama_jax.errors import UserError
from llama_jax.train.best import Best, improved
from llama_jax.train.load import load
from llama_jax.train.loop import train
from llama_jax.weights.orbax import corruption, saved_steps
from tests.train.tiny import text_run

TOLD: list[Iterator[float]] = []


@dataclasses.dataclass(frozen=True)
class Told:
    """An evaluation that finds what the test says."""

    every: int = 1

    def __call__(self, model, params, tokenizer, run):
        return {"loss": next(TOLD[-1])}


def run(text, **changes):
    settings = {"evaluations": {"val": Told()}, "keep": 1, "save_every": 2, "steps": 5}
    return dataclasses.replace(text_run(text), **settings | changes)


def test_the_best_step_is_kept_however_old_and_loaded_by_name(text, tmp_path):
    TOLD.append(iter([5.0, 4.0, 1.0, 3.0, 2.0, 6.0, 7.0]))
    train(run(text, keep_best="val/loss"), tmp_path, progress=False)
    assert saved_steps(tmp_path / "checkpoints") == [3, 5]  # 3 was the best and no step to save
    assert json.loads((tmp_path / "best.json").read_text()) == {
        "step": 3, "name": "val/loss", "value": 1.0,
    }  # fmt: skip
    assert corruption(tmp_path / "checkpoints" / "3") is None
    assert [load(tmp_path, classes=[Told], step=s).step for s in ("best", 3, 5, None)] == [
        3,
        3,
        5,
        5,
    ]
    with pytest.raises(UserError, match=r"no checkpoint of step 4 in .*there are 3, 5"):
        load(tmp_path, classes=[Told], step=4)
    # Going on, what was best stays so.
    train(run(text, keep_best="val/loss", steps=7), tmp_path, progress=False)
    assert saved_steps(tmp_path / "checkpoints") == [3, 7]


def test_a_run_without_a_best_step_says_so(uninterrupted):
    with pytest.raises(UserError, match="no best step: it was trained without keep_best"):
        load(uninterrupted, step="best")


def test_the_figure_that_decides_must_be_found_by_an_evaluation(text):
    with pytest.raises(UserError, match=r"keep_best='test/loss': give a figure.*\['val'\]"):
        run(text, keep_best="test/loss")
    with pytest.raises(UserError, match="val finds loss, accuracy. Did you mean 'loss'"):
        improved("val/los", 1, {"val": {"loss": 1.0, "accuracy": 0.5}}, None)


@pytest.mark.parametrize(
    ("name", "value", "better"),
    [
        ("val/loss", 1.0, True),
        ("val/loss", 3.0, False),
        ("val/loss", float("nan"), False),
        ("val/lm_perplexity", 1.0, True),
        ("val/accuracy", 3.0, True),
        ("val/accuracy", 1.0, False),
        ("test/loss", 1.0, False),  # not evaluated at this step
    ],
)
def test_losses_are_best_low_and_all_else_high(name, value, better):
    found = {"val": {name.partition("/")[2]: value}}
    assert (improved(name, 7, found, Best(3, name, 2.0)) == Best(7, name, value)) == better
    other = Best(3, "val/other", 0.0)  # of another figure: says nothing
    if better:
        assert improved(name, 7, found, other) == Best(7, name, value)
