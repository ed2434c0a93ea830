"""A batch that grows and weights that are averaged: through the loop, a stop and what is read."""

import dataclasses
import functools
import json

import jax
import numpy as np
import pytest

from llama_jax.config import as_now, to_json
from llama_jax.config.differences import differences
from llama_jax.train.load import load
from llama_jax.train.loop import train
from tests.train.tiny import losses, text_run

pytestmark = pytest.mark.usefixtures("compiled_once")


def test_a_growing_batch_and_an_average_go_on_as_if_nothing_happened(tmp_path, text, capsys):
    run = functools.partial(text_run, text, batch_schedule=((2, 2),), ema=0.9, save_every=3)
    train(run(steps=4), tmp_path / "whole")
    assert "a step takes 2 batch(es) from here on, in 2 micro-batches" in capsys.readouterr().err
    for steps in (3, 4):
        train(run(steps=steps), tmp_path / "stopped", progress=False)
    assert losses(tmp_path / "stopped") == losses(tmp_path / "whole")

    checkpoint = tmp_path / "whole" / "checkpoints" / "4"
    data = json.loads((checkpoint / "data.json").read_text())
    assert data["loader"]["step"] == 1 + 1 + 2 + 2
    # Who reads the run gets the average; without it, the weights.
    average = load(tmp_path / "whole").params
    (checkpoint / "ema").rename(tmp_path / "ema")
    manifest = json.loads((checkpoint / "manifest.json").read_text())
    kept = {name: digest for name, digest in manifest.items() if not name.startswith("ema/")}
    (checkpoint / "manifest.json").write_text(json.dumps(kept))
    last = load(tmp_path / "whole").params
    apart = jax.tree.map(lambda a, b: float(np.max(np.abs(a - b))), average, last)
    assert 0 < max(jax.tree.leaves(apart)) < 0.1
    assert [run().batches(step) for step in (1, 2, 3)] == [1, 1, 2]


def test_an_older_run_json_without_a_new_field_is_the_same_run(text):
    run = text_run(text)
    old = json.loads(to_json(run))
    for name in ("batch_schedule", "ema"):
        del old[name]
    del old["optimizer"]["groups"]
    old["optimizer"]["schedule"]["class"] = "llama_jax.optim.optimizer:Constant"
    now = json.loads(to_json(run))
    assert differences(old, now)
    assert differences(as_now(json.dumps(old), run), now) == []


def test_the_step_before_a_batch_grows_is_logged_and_its_time_is_counted(tmp_path, text):
    run = text_run(text, batch_schedule=((6, 2),), log_every=4, steps=9, save_every=100)
    train(run, tmp_path, progress=False)
    lines = list(map(json.loads, (tmp_path / "metrics.jsonl").read_text().splitlines()))
    assert [line["step"] for line in lines] == [4, 6, 8, 9]
    good = [line["good_seconds"] for line in lines]
    assert good == sorted(good) and good[0] < good[1] < good[2]
    assert all(line["seconds_per_step"] > 0 for line in lines)
    rows = [line["examples_per_second"] * line["seconds_per_step"] for line in lines]
    np.testing.assert_allclose(rows, [8, 8, 16, 16])


@dataclasses.dataclass(frozen=True)
class Idle:
    """An evaluation that asks whether the step before it is done."""

    every: int = 1

    def __call__(self, model, params, tokenizer, run):
        return {"done": float(all(x.is_ready() for x in jax.tree.leaves(params)))}


def test_an_evaluation_begins_when_the_step_has_ended(tmp_path, text):
    run = text_run(text, evaluations={"idle": Idle()}, steps=4)
    train(run, tmp_path, progress=False)
    lines = map(json.loads, (tmp_path / "metrics.jsonl").read_text().splitlines())
    assert [line["idle/done"] for line in lines if "idle/done" in line] == [1.0] * 4
