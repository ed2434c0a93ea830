"""The longer examples of the README run as they are written."""

import re
import shlex

from llama_jax import edit, presets
from llama_jax.__main__ import main
from llama_jax.data import Tfds, sources
from tests.demo import small
from tests.readme import BLOCKS, example
from tests.train.tiny import write_text


def test_the_example_runs_as_it_is_written(tmp_path, monkeypatch, capsys):
    get = presets.get

    def tiny(name):
        """The preset over a little of its data."""
        run = edit(get(name), "data.text.source.limit", 8)
        return edit(run, "model.stack.pattern.0.ffn.hidden", 32)

    monkeypatch.setattr(presets, "get", tiny)
    monkeypatch.chdir(tmp_path)
    code = (
        example("tiny_decoder").replace("steps=300", "steps=2").replace("max_new=40", "max_new=3")
    )
    with small.quick():
        exec(compile(code, "README.md", "exec"), {})
    printed = capsys.readouterr().out
    assert printed.startswith("Stack(") and (tmp_path / "runs/four_layers/run.json").exists()


def test_the_demo_answers_as_the_second_example_says(monkeypatch, capsys):
    place = str(small.demo())
    capsys.readouterr()
    with small.quick():
        exec(compile(example("runs/demo/vqa").replace("runs/demo", place), "README.md", "exec"), {})
    assert re.fullmatch(r".*\(\d+ %; then .*\)\n", capsys.readouterr().out)


def test_the_example_of_real_weights_runs_as_it_is_written(capsys):
    code = example("llama_jax.load()")
    exec(compile(code, "README.md", "exec"), {})
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
    [block] = [block for kind, block in BLOCKS if kind == "sh" and "prepare my_texts" in block]
    for line in block.splitlines():
        words = shlex.split(line)[1:]
        short = ["--steps", "2", "--set", "data.text.task.length=32"] if words[0] == "train" else []
        with small.quick():
            assert main([*words, *short]) == 0
    said = capsys.readouterr()
    assert "prepared/mine: 60 documents" in said.out and "75.0% of the tokens" in said.err
    assert (tmp_path / "runs/mix/checkpoints/2").is_dir()
