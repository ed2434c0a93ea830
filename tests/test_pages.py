"""The commands, links, tables and examples of the pages are real."""

import dataclasses
import importlib.util
import json
import re
import shlex
from typing import Any

import jax
import numpy as np
import pytest

import llama_jax.data
import llama_jax.objectives
from llama_jax import axes, tasks
from llama_jax.__main__ import _one_command, _parser, main
from llama_jax.config import Run, to_json
from llama_jax.evals import evaluations
from llama_jax.kernels.attention.api import BACKENDS
from llama_jax.kernels.attention.mask import Mask
from llama_jax.presets.meshes import LAYOUTS
from llama_jax.train.load import Trained
from tests.pages import BLOCKS, ROOT, TEXTS, example, run_example
from tests.test_imports import area, imports, sources

PROSE = [re.sub(r"^```.*?^```", "", text, flags=re.M | re.S) for text in TEXTS.values()]
INLINE = [" ".join(code.split()) for text in PROSE for code in re.findall(r"`([^`]+)`", text)]
SHELL = [line for block in BLOCKS if block.kind == "sh" for line in block.code.splitlines()]


def lines(program):
    every = {line for line in (*SHELL, *INLINE) if line.startswith(f"{program} ")}
    return sorted(every)


@pytest.mark.parametrize("line", lines("make"))
def test_targets_of_make_exist(line):
    targets = re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert line.split()[1] in targets


@pytest.mark.parametrize("line", lines("python -m"))
def test_experiments_that_are_named_exist(line):
    assert importlib.util.find_spec(line.split()[2])


@pytest.mark.parametrize("line", lines("llama-jax"))
def test_command_lines_are_understood(line, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my_run.py").write_text(example("# my_run.py"))
    words = shlex.split(line.removesuffix("&"))[1:]
    if "--help" in words:
        with pytest.raises(SystemExit, match="0"):
            main(words)
    elif words[0] != "train":
        assert _parser().parse_known_args(_one_command(words))[1] == []
    else:  # every field is applied and the run is shown, not trained
        assert main([*words, "--options"] if "--options" not in words else words) == 0
        assert "\n--optimizer.rate " in f"\n{capsys.readouterr().out}"


@pytest.mark.parametrize("page", [*TEXTS, "experiments/LOG.md"])
def test_links_lead_somewhere(page):
    here = ROOT / page
    for target in re.findall(r"\]\(([^)]+)\)", here.read_text(encoding="utf-8")):
        if target.startswith("https://"):
            continue
        name, _, heading = target.partition("#")
        place = here.parent / name if name else here
        assert place.exists(), f"{page} links to {target}"
        assert not heading or heading in headings(place.read_text()), f"{page} links to {target}"


def headings(text):
    """The headings of a page as links name them."""
    text = re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)
    found = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in found}


def rooms():
    return [
        path.name.removesuffix(".py")
        for path in (ROOT / "llama_jax").iterdir()
        if not path.name.startswith((".", "_")) and (path.suffix == ".py" or path.is_dir())
    ]


def objectives():
    every = (getattr(llama_jax.objectives, name) for name in llama_jax.objectives.__all__)
    base = llama_jax.objectives.Objective
    return [o.__name__ for o in every if isinstance(o, type) and base in o.__mro__[1:]]


def fields(config):
    return [field.name for field in dataclasses.fields(config)]


@pytest.mark.parametrize(
    ("page", "names"),
    [
        ("docs/architecture.md", [*rooms(), *llama_jax.__all__]),
        ("docs/data.md", set(llama_jax.data.__all__) - {"Loader", "Masking", "one_pass", "texts"}),
        ("docs/tasks.md", tasks.NAMES),
        ("docs/training.md", objectives()),
        ("docs/config.md", fields(Run)),
        ("docs/kernels.md", [*BACKENDS, *fields(Mask)]),
        ("docs/pods.md", LAYOUTS),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_tables_leave_nothing_out(page, names):
    assert [name for name in names if not re.search(rf"`{name}\b", TEXTS[page])] == []


def test_every_command_is_told_of():
    [names] = [action.choices for action in _parser()._actions if action.choices]
    assert [name for name in names if f"`llama-jax {name}" not in TEXTS["docs/config.md"]] == []


def test_every_experiment_is_told_of():
    for path in (ROOT / "experiments").glob("*.py"):
        if path.read_text(encoding="utf-8").partition("\n")[0].endswith("?"):
            assert f"[{path.name}]({path.name})" in TEXTS["experiments/README.md"]


def test_every_letter_is_told_of():
    table = TEXTS["docs/architecture.md"].partition("| letter |")[2].partition("\n\n")[0]
    told = {cell for row in table.splitlines() for cell in re.findall(r"\b[A-Z]\b", row)}
    assert told == set(axes.LETTERS)


def test_the_readme_is_a_screen_and_a_half():
    assert len(TEXTS["README.md"].splitlines()) <= 120
    assert (ROOT / "notebooks/images/demo.png").stat().st_size < 200_000


def test_the_example_of_attention_runs_as_it_is_written():
    names = run_example(example("import Mask, attention"))
    assert names["out"].shape == (2, 300, 8, 64)
    assert abs(names["out"] - 1).max() < 1e-6  # a mean of equal values


def test_the_example_of_a_path_runs_as_it_is_written():
    run = run_example(example("attention.window"))["run"]
    assert run.model.stack.pattern[0].attention.window == 64


def test_the_model_of_ones_own_builds(tmp_path):
    run = run_example(example("# my_run.py"))["run"]()
    module, ids_BT = run.model.build(), jax.ShapeDtypeStruct((1, 8), "int32")
    params = jax.eval_shape(module.init, jax.random.key(0), ids_BT)["params"]
    [ffn] = [layer["block_0"]["ffn"] for layer in params["decoder"]["stack"].values()]
    assert {name: part["w"].value.shape for name, part in ffn.items()} == {
        "up": (2, 128, 512),
        "down": (2, 512, 128),
    }


def test_the_objective_of_ones_own_is_evaluated_as_it_says():
    run = run_example(example("# my_goal.py"))["run"]()
    [small] = evaluations(run)
    params = {"w": np.array([0.0, 1e-5, 0.5, -0.5])}
    nothing: Any = None  # it reads no text
    [row] = small.rows(Trained(run, run.model.build(), params, nothing, step=0))
    assert (row.name, row.value, row.count) == ("lm_small", 0.5, 4)
    config = json.loads(to_json(run))["objectives"]["lm"]
    assert config["class"] == "example:Sparse"


def test_the_example_of_the_door_runs_as_it_is_written():
    names = run_example(example("taps=(0,)"))
    assert names["logits"].shape == (1, 8, 1024)
    assert names["out"].x.shape == names["out"].taps[0].shape == (1, 8, 128)


def floors():
    """The rooms of the picture, from the top; those of one line share a floor."""
    picture = TEXTS["docs/architecture.md"].partition("```\n")[2].partition("```")[0]
    return [line.split("|")[1].split() for line in picture.splitlines() if "|  " in line]


def test_the_picture_has_every_room():
    drawn = [room for floor in floors() for room in floor]
    assert sorted(set(drawn)) == sorted([*rooms(), "__main__"])
    assert len(drawn) == len(set(drawn))


def test_the_picture_is_what_imports_are():
    order = {room: number for number, floor in enumerate(floors()) for room in floor}
    up = set()
    for path in sources():
        here = area(path)
        for _, name in imports(path):
            there = name.split(".")[1] if name.startswith("llama_jax.") else here
            if order.get(there, len(order)) < order.get(here, 0):
                up.add(f"{here} uses {there}")
    assert sorted(up) == []
