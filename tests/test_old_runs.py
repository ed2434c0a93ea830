"""Runs, data and configs that commit 2babaf5 wrote: they open, go on, convert, evaluate, answer.

What that commit found in them stands in old_runs/2babaf5.json; old_runs/write.py made them.
"""

import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from llama_jax import presets
from llama_jax.__main__ import main
from llama_jax.config import edit, from_json
from llama_jax.models.heads import PairHead
from llama_jax.weights.convert import convert
from tests.old_runs import measure
from tests.old_runs.measure import RUNS

FOUND = json.loads((Path(measure.__file__).parent / "2babaf5.json").read_text())
# Another CPU and another compiler add float32 in another order, here over at most three steps of
# training. Where the file was written every bit is equal.
TOLERANCE = 1e-5
# Classes that became another: old name -> new name.
BECAME: dict[str, str] = {}


@pytest.fixture
def place(tmp_path, monkeypatch):
    """The artefacts in a folder of the test's own; paths in them are relative to it."""
    measure.unpack(tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def same(found, expected):
    """Compares what may be nested: numbers within the tolerance, all else exactly."""
    if isinstance(expected, dict):
        assert found.keys() == expected.keys()
        for key, value in expected.items():
            same(found[key], value)
    elif isinstance(expected, list) and expected and isinstance(expected[0], float):
        np.testing.assert_allclose(found, expected, rtol=TOLERANCE, atol=TOLERANCE)
    elif isinstance(expected, list):
        assert len(found) == len(expected)
        for one, other in zip(found, expected, strict=True):
            same(one, other)
    elif isinstance(expected, float):
        assert found == pytest.approx(expected, rel=TOLERANCE, abs=TOLERANCE)
    else:
        assert found == expected


@pytest.mark.parametrize("name", RUNS)
def test_weights_are_read_to_the_bit_under_the_same_paths(place, name):
    assert measure.weights(place / name) == FOUND["weights"][name]


@pytest.mark.parametrize("name", RUNS)
def test_a_run_goes_on_with_the_losses_it_would_have_had(place, name):
    same(measure.gone_on(place / name), FOUND["gone_on"][name])


@pytest.mark.parametrize("name", RUNS)
def test_an_evaluation_gives_the_same_figures(place, name):
    same(measure.evaluated(place / name), FOUND["evaluated"][name])


def test_a_language_model_writes_the_same_text(place):
    same(measure.spoken(place / "decoder"), FOUND["spoken"])
    same(measure.logits(place / "decoder"), FOUND["logits"])


def test_a_language_model_becomes_the_same_files_of_hugging_face_and_comes_back(place):
    made = measure.converted(place / "decoder", place / "hf")
    assert made["tensors"] == FOUND["converted"]["tensors"]
    assert made["config"] | FOUND["converted"]["config"] == made["config"]
    same(measure.logits(place / "hf"), FOUND["logits"])
    convert(place / "hf", place / "back", "orbax")
    assert measure.read(place / "back") == FOUND["weights"]["decoder"]


def test_questions_about_pictures_get_the_same_answers(place):
    same(measure.answered(place / "multimodal"), FOUND["answered"])


def test_without_its_newest_checkpoint_a_run_goes_on_from_the_one_before(place):
    written = measure.lines(place / "decoder")
    shutil.rmtree(place / "decoder/checkpoints/6")
    gone_on = measure.gone_on(place / "decoder")  # to step 9, on which the rates depend
    same(gone_on[0]["step"], 7)
    assert [line["step"] for line in measure.lines(place / "decoder")] == list(range(1, 10))
    same(measure.lines(place / "decoder")[:3], written[:3])
    assert measure.lines(place / "decoder")[3]["loss"] == pytest.approx(
        written[3]["loss"], rel=TOLERANCE
    )


def test_prepared_data_is_trained_on_and_other_weights_are_begun_with(place):
    same(measure.begun(place), FOUND["begun"])


def test_prepared_data_is_taken_for_whole_by_the_same_command(place, capsys):
    def files():
        return {p.name: p.read_bytes() for p in (place / "prepared").iterdir() if p.name != "lock"}

    before = files()
    assert main(["prepare", "lambs.txt", "prepared", "--vocab", "276", "--workers", "1"]) == 0
    assert "48 documents" in capsys.readouterr().out
    assert files() == before


def test_the_run_json_of_a_preset_is_the_preset(place):
    for path in sorted((place / "presets").iterdir()):
        begun = edit(presets.get(path.stem), "optimizer.schedule.begin", 0)  # as it was then
        if hasattr(begun.model, "pairs"):
            begun = edit(begun, "model.pairs", PairHead())
        # Rows were not split over the devices of the experts; a run keeps the rules it began with.
        rows = tuple(
            (letter, tuple(a for a in axes if a != "expert") if letter in "BI" else axes)
            for letter, axes in begun.rules.activations
        )
        had = dataclasses.replace(begun.rules, activations=(*rows, ("E", "expert")))
        assert from_json(path.read_text()) == dataclasses.replace(begun, rules=had), path.stem


def test_every_config_opens_as_what_it_was(place):
    for text in json.loads((place / "values.json").read_text()):
        name = text["value"]["class"].rpartition(":")[2]
        made = type(from_json(json.dumps(text))["value"]).__name__
        assert made == BECAME.get(name, name)
