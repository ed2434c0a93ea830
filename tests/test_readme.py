"""The commands, links and examples of the README are real."""

import re
import shlex
from pathlib import Path

import pytest

import llama_jax.data
from llama_jax import edit, presets
from llama_jax.__main__ import _one_command, _override, _parser, _set
from tests.demo import small

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```", TEXT, re.MULTILINE | re.DOTALL)
INLINE = [code for code in re.findall(r"`([^`\n]+)`", TEXT) if " " in code]
LINES = [line for kind, block in BLOCKS if kind == "sh" for line in block.splitlines()] + INLINE
PYTHON = [block for kind, block in BLOCKS if kind == "python"]


def example(word):
    """The one example in which a word stands."""
    [block] = [block for block in PYTHON if word in block]
    return block


def commands(program):
    return sorted({line for line in LINES if line.split()[0] == program})


@pytest.mark.parametrize("line", commands("make"))
def test_targets_of_make_exist(line):
    targets = re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert line.split()[1] in targets


@pytest.mark.parametrize("line", commands("llama-jax"))
def test_command_lines_are_understood(line):
    words = shlex.split(line.removesuffix("&"))[1:]
    args, rest = _parser().parse_known_args(_one_command(words))
    if "preset" in args:
        run = _override(presets.get(args.preset), rest)
        for change in args.set:
            run = _set(run, change)
        assert run != presets.get(args.preset) or args.options or not (rest or args.set)
    else:
        assert rest == []


def test_every_command_and_every_source_is_told_of():
    parser = _parser()
    [names] = [action.choices for action in parser._actions if action.choices]
    for name in names:
        assert f"`llama-jax {name}" in TEXT
    for name in llama_jax.data.__all__:
        if name not in ("Loader", "Masking", "Stream", "one_pass", "texts"):
            assert f"`{name}" in TEXT


def test_links_lead_somewhere():
    for target in re.findall(r"\]\(([^)]+)\)", TEXT):
        assert target.startswith("https://") or (ROOT / target).exists(), target


def test_the_picture_is_small():
    assert (ROOT / "notebooks/images/demo.png").stat().st_size < 200_000


def test_the_example_runs_as_it_is_written(tmp_path, monkeypatch, capsys):
    get = presets.get

    def tiny(name):
        """The preset over a little of its data."""
        run = edit(get(name), "data.text.source.limit", 8)
        return edit(run, "model.decoder.stack.pattern.0.ffn.hidden", 32)

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


def test_the_example_of_attention_runs_as_it_is_written():
    names = {}
    exec(compile(example("import Mask, attention"), "README.md", "exec"), names)
    assert names["out"].shape == (2, 300, 8, 64)
    assert abs(names["out"] - 1).max() < 1e-6  # a mean of equal values


def test_the_example_of_real_weights_runs_as_it_is_written(capsys):
    code = example("llama_jax.load()")
    exec(compile(code, "README.md", "exec"), {})
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith(" Paris")
    assert re.search(r"^\(1, 3, 49152\) \d+\.\d+$", lines[-1])
