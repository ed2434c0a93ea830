"""The commands, links and examples of the README are real."""

import re
import shlex

import pytest

import llama_jax.data
from llama_jax import presets
from llama_jax.__main__ import _one_command, _parser
from llama_jax.cli.options import override, set_field
from tests.readme import BLOCKS, ROOT, TEXT, example

INLINE = [code for code in re.findall(r"`([^`\n]+)`", TEXT) if " " in code]
LINES = [line for kind, block in BLOCKS if kind == "sh" for line in block.splitlines()] + INLINE


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
        run = override(presets.get(args.preset), rest)
        for change in args.set:
            run = set_field(run, change)
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


def test_the_example_of_attention_runs_as_it_is_written():
    names = {}
    exec(compile(example("import Mask, attention"), "README.md", "exec"), names)
    assert names["out"].shape == (2, 300, 8, 64)
    assert abs(names["out"] - 1).max() < 1e-6  # a mean of equal values
