"""A start that fails leaves no run directory behind, and never touches one that was there."""

import dataclasses

import pytest

from llama_jax.config import File, Mesh, edit
from llama_jax.errors import UserError
from llama_jax.train.loop import train
from llama_jax.train.profile import Profile
from tests.train.tiny import text_run

pytestmark = pytest.mark.usefixtures("compiled_once")

# What cannot begin, by what is wrong: the change to a run that would, and what the error says.
WRONG = {
    "data": ("data.text.source", "no/such/file.txt", "no/such/file.txt"),
    "batch": ("data.text.batch", 6, "cannot be shared by 8 devices"),
    "length": ("model.context", 8, "rows of 16 tokens"),
    "mesh": ("mesh", Mesh(fsdp=3), "devices"),
    "split": ("mesh", Mesh(expert=2), "split nothing over 'expert'"),
    "tokenizer": ("tokenizer", File("no/tokenizer.json"), "no/tokenizer.json"),
    "vocabulary": ("model.vocab", 400, "make them equal"),
    "weights": ("init_from", "no/such/run", "does not exist"),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_a_start_that_fails_leaves_nothing_behind(tmp_path, text, wrong):
    path, value, said = WRONG[wrong]
    run = text_run(text)
    run = dataclasses.replace(run, **{path: value}) if "." not in path else edit(run, path, value)
    with pytest.raises(UserError, match=said):
        train(run, tmp_path / "runs" / "one", progress=False)
    assert list(tmp_path.iterdir()) == []


def test_a_start_that_is_interrupted_leaves_nothing_behind(tmp_path, text, monkeypatch):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("llama_jax.train.setup.check_rows", interrupted)
    with pytest.raises(KeyboardInterrupt):
        train(text_run(text), tmp_path / "run", progress=False)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_was_there_stays_with_what_is_in_it(tmp_path, text):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(UserError):
        train(edit(text_run(text), "model.vocab", 400), tmp_path, progress=False)
    assert (tmp_path / "notes.txt").read_text() == "mine"


@pytest.mark.parametrize("name", ["config.json", "manifest.json"])
def test_a_folder_of_weights_or_data_becomes_no_run(tmp_path, text, name):
    (tmp_path / name).write_text("{}")
    with pytest.raises(UserError, match=f"holds {name}, so that it is no run"):
        train(text_run(text), tmp_path, progress=False)
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_a_folder_beside_the_run_stays(tmp_path, text, monkeypatch):
    def beside(*_):
        (tmp_path / "runs" / "other").mkdir()
        raise UserError("no")

    monkeypatch.setattr("llama_jax.train.setup.check_rows", beside)
    with pytest.raises(UserError, match="no"):
        train(text_run(text), tmp_path / "runs" / "one", progress=False)
    assert [p.name for p in (tmp_path / "runs").iterdir()] == ["other"]


def test_what_fails_after_a_step_leaves_what_it_found(tmp_path, text, monkeypatch):
    monkeypatch.setattr("llama_jax.train.log.HOPELESS", 2)
    run = edit(text_run(text), "optimizer.rate", 1e30)
    with pytest.raises(UserError, match="not finite"):
        train(run, tmp_path / "run", progress=False, profile=Profile(2, 3))
    assert (tmp_path / "run" / "metrics.jsonl").read_text().count("\n") > 1


@pytest.mark.parametrize("run", ["tiny_decoder", None])
def test_a_name_in_place_of_a_run_is_refused(tmp_path, run):
    with pytest.raises(
        UserError, match="of train is of type .*; Run was expected, e.g. presets.get"
    ):
        train(run, tmp_path / "x", steps=1)
    assert not (tmp_path / "x").exists()


def test_half_a_step_is_refused(tmp_path, text):
    with pytest.raises(
        UserError, match="steps=1.5 of train is of type float; int . None was expected"
    ):
        train(text_run(text), tmp_path / "x", steps=1.5)
    assert not (tmp_path / "x").exists()
