"""The longer examples of the pages run as they are written."""

import importlib.util
import re
import shlex
import sys

import pytest

from llama_jax import edit, presets
from llama_jax.__main__ import main
from llama_jax.data import Tfds, sources
from llama_jax.train.load import load
from llama_jax.train.loop import train
from tests.demo import small
from tests.pages import example, run_example
from tests.train.tiny import write_text


@pytest.fixture
def little(tmp_path, monkeypatch):
    """Presets over a little of their data, in an empty folder."""
    get = presets.get

    def tiny(name):
        run = edit(get(name), "data.text.source.limit", 8)
        return edit(run, "model.stack.pattern.0.ffn.hidden", 32)

    monkeypatch.setattr(presets, "get", tiny)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_run_is_edited_and_trained_as_the_readme_says(little, capsys):
    code = example("edit, load, presets, train").replace("steps=300", "steps=2")
    with small.quick():
        run_example(code.replace("max_new_tokens=40", "max_new_tokens=3"))
    printed = capsys.readouterr().out
    assert printed.startswith("Stack(") and (little / "runs/four_layers/run.json").exists()


def test_a_trained_run_decodes_as_the_page_about_training_says(little, capsys):
    with small.quick():
        train(presets.get("tiny_decoder"), "runs/four_layers", steps=2, progress=False)
        capsys.readouterr()
        run_example(example('load("runs/four_layers")\nwords').replace("max_new=40", "max_new=3"))
    assert capsys.readouterr().out


def test_the_model_of_ones_own_trains_and_is_read_back(little, monkeypatch):
    (little / "my_run.py").write_text(example("# my_run.py"))
    monkeypatch.syspath_prepend(little)
    monkeypatch.delitem(sys.modules, "my_run", raising=False)
    mine = importlib.import_module("my_run")
    with small.quick():
        train(mine.run(), "runs/mine", steps=2, progress=False)
    trained = load("runs/mine", classes=[mine.SquaredReLU])
    assert trained.step == 2 and trained.run.model == mine.run().model


def test_the_demo_answers_as_the_page_about_training_says(capsys):
    place = str(small.demo())
    capsys.readouterr()
    with small.quick():
        run_example(example("runs/demo/vqa").replace("runs/demo", place))
    assert re.fullmatch(r".*\(\d+ %; then .*\)\n", capsys.readouterr().out)


def test_real_weights_are_opened_as_the_readme_says(capsys):
    run_example(example("llama_jax.load()"))
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith(" Paris")
    assert re.search(r"^\(1, 3, 49152\) \d+\.\d+$", lines[-1])


def test_the_commands_that_pretrain_on_own_text_run_as_they_are_written(
    tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    write_text((tmp_path / "my_texts").mkdir() or tmp_path / "my_texts/lambs.txt")
    get = sources.named
    monkeypatch.setattr(
        sources, "named", lambda name: Tfds("kjv", limit=8) if name == "kjv" else get(name)
    )
    for line in example("prepare my_texts", "sh").splitlines():
        words = shlex.split(line)[1:]
        short = ["--steps", "2", "--set", "data.text.task.length=32"] if words[0] == "train" else []
        with small.quick():
            assert main([*words, *short]) == 0
    said = capsys.readouterr()
    assert "prepared/mine: 60 documents" in said.out and "75.0% of the tokens" in said.err
    assert (tmp_path / "runs/mix/checkpoints/2").is_dir()
