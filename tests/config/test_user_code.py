"""Runs and classes of the user's own files."""

import dataclasses
import json
import sys

import pytest

from llama_jax import presets
from llama_jax.__main__ import main
from llama_jax.config import edit, from_json, to_json, user_code
from llama_jax.config.differences import differences
from llama_jax.config.tags import tag
from llama_jax.errors import CodeError, UserError

RUN = """
import dataclasses
from llama_jax import Run, edit, presets

@dataclasses.dataclass(frozen=True)
class Goal:
    on: str = "text"
    weight: float = 1.0

def run() -> Run:
    return edit(presets.get("tiny_decoder"), "objectives", {"lm": Goal()})

value = edit(presets.get("tiny_decoder"), "steps", 7)
number = 3

def short() -> Run:
    return value

def failing() -> Run:
    return helper(
        3
    )

def helper(n):
    raise KeyError(n)
"""


@pytest.fixture
def write(tmp_path, monkeypatch):
    """Writes a file of a name of its own; nothing of it stays after the test."""
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setattr(user_code, "_named", {})
    monkeypatch.setattr(user_code, "_digests", {})
    monkeypatch.chdir(tmp_path)
    before = set(sys.modules)

    def write(text, name="own_goal.py"):
        (tmp_path / name).write_text(text)
        return name

    yield write
    for name in set(sys.modules) - before:
        if str(tmp_path) in str(getattr(sys.modules[name], "__file__", "")):
            del sys.modules[name]


def test_a_run_is_a_function_or_a_value_of_a_file(write):
    file = write(RUN)
    assert user_code.run_of(f"{file}:run").name == "tiny_decoder"
    assert user_code.run_of(f"{file}:value").steps == 7
    [one] = [
        write(
            "from llama_jax import Run, presets\ndef a() -> Run:\n"
            "    return presets.get('tiny_decoder')\ndef b():\n    pass\n",
            "one_run.py",
        )
    ]
    assert user_code.run_of(one) == presets.get("tiny_decoder")


def test_a_run_with_classes_of_a_file_opens_if_the_file_is_named(write):
    run = user_code.run_of(f"{write(RUN)}:run")
    text = to_json(run)
    assert json.loads(text)["imports"].keys() == {"own_goal.py"}
    assert tag(type(run.objectives["lm"])) == "own_goal:Goal"
    assert from_json(text) == run
    user_code._named.clear()
    with pytest.raises(UserError, match="if it is yours, name its file: --import own_goal.py"):
        from_json(text)
    with pytest.raises(UserError, match="has no class 'Gaol' any more. Did you mean 'Goal'"):
        from_json(text.replace(":Goal", ":Gaol"), [type(run.objectives["lm"])])


def test_tags_of_older_files_are_found_by_the_modules_last_name_or_the_class_alone(write):
    run = user_code.run_of(f"{write(RUN)}:run")
    for old in ("some.where.own_goal:Goal", "__main__:Goal"):
        assert from_json(to_json(run).replace("own_goal:Goal", old)) == run


def test_it_is_said_when_the_file_has_changed(write):
    run = user_code.run_of(f"{write(RUN)}:run")
    value, said = json.loads(to_json(run)), []
    assert from_json(json.dumps(value), say=said.append) == run and said == []
    value["imports"]["own_goal.py"] = "0" * 64
    assert from_json(json.dumps(value), say=said.append) == run
    assert len(said) == 1 and said[0].startswith(
        "own_goal.py has changed since the run was written"
    )


def test_processes_of_a_pod_see_that_their_files_differ(write, monkeypatch):
    run = user_code.run_of(f"{write(RUN)}:run")
    here = json.loads(to_json(run))
    monkeypatch.setitem(user_code._digests, "own_goal", "0" * 64)
    [said] = differences(here, json.loads(to_json(run)))  # as `processes.agree` compares them
    assert said.startswith("imports.own_goal.py was ")


@dataclasses.dataclass(frozen=True)
class Twice:
    on: str = "text"
    weight: float = 1.0


def test_two_classes_of_one_tag_are_refused():
    other = dataclasses.make_dataclass("Twice", ["on"], frozen=True)
    other.__module__ = __name__
    run = edit(presets.get("tiny_decoder"), "objectives", {"lm": Twice()})
    with pytest.raises(UserError, match="two classes are called 'test_user_code:Twice'"):
        from_json(to_json(run), [Twice, other])


@pytest.mark.parametrize(
    ("text", "name", "lines"),
    [
        ("import nothing_there_x\n", "", ["bad.py does not import: ModuleNotFoundError: No",
                                          "bad.py, line 1, in <module>", "import nothing_there_x"]),
        ("x = 1\ndef f(:\n", "", ["bad.py does not import: SyntaxError: ", "bad.py, line 2",
                                  "def f(:"]),
        ("raise SystemExit\n", "", ["bad.py does not import: SystemExit", "line 1", "raise"]),
        (RUN, ":failing", ["bad.py:failing fails: KeyError: 3", "25, in helper", "raise KeyE"]),
    ],
)  # fmt: skip
def test_code_that_fails_is_shown_in_three_lines(write, capsys, text, name, lines):
    file = write(text, "bad.py")
    assert main(["train", f"{file}{name}", "--run-dir", "x"]) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("llama-jax: ") and err.count("\n") == 3
    assert all(part in line for part, line in zip(lines, err.splitlines(), strict=True)), err
    with pytest.raises(CodeError):
        user_code.run_of(f"{file}{name}")


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("own_goal.py:rum", "own_goal.py has no 'rum'. Did you mean 'run'?"),
        ("own_goal.py:number", "own_goal.py:number gives a value of type int; a Run was expected"),
        ("own_goal.py:Goal", "own_goal.py:Goal gives a value of type type; a Run was expected"),
        ("own_goal.py", "has several runs; name one: own_goal.py:run, own_goal.py:value"),
        ("own_gaol.py", "own_gaol.py does not exist; a Python file was expected. Did you mean"),
        ("my-run.py", "a file that is imported needs a name such as my_run.py"),
        ("json.py", "there is another module called 'json'; rename the file"),
        ("wants.py:run", "wants.py:run needs steps; one without arguments was expected"),
        (
            "own_goal:run",
            "'own_goal:run' is no preset, and a run of your own is FILE.py:NAME; try own",
        ),
        (".", "'.' is a folder, and a preset or FILE.py:NAME was expected; weights that are there"),
        ("own_goal", "try own_goal.py:run"),
        ("own_goal.py.short", "try own_goal.py:run"),
        ("own_goal.py:run:short", "try own_goal.py:short"),
        ("a/two:b", "try a/two.py:b"),
        ("empty_run.py:", "empty_run.py has no function annotated '-> Run'"),
    ],
)
def test_a_file_without_the_run_is_one_line(write, capsys, name, said):
    for text, file in (
        (RUN, "own_goal.py"),
        ("", "my-run.py"),
        ("", "json.py"),
        ("", "empty_run.py"),
        ("def run(steps, *more, rate=1.0):\n    pass\n", "wants.py"),
    ):
        write(text, file)
    assert main(["train", name, "--run-dir", "x"]) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1 and said in err


def test_a_file_beside_the_users_hides_no_package(write):
    write("raise AssertionError('not this one')", "optax.py")
    sys.modules.pop("one_run", None)
    file = write(
        "import optax\nassert hasattr(optax, 'adamw')\nfrom llama_jax import presets\n"
        "a = presets.get('tiny_decoder')\n",
        "one_run.py",
    )
    assert user_code.run_of(file) == presets.get("tiny_decoder")


def test_an_unknown_file_to_import_is_one_line(write, capsys):
    write(RUN)
    assert main(["eval", "x", "--import", "own_gaol.py"]) == 2
    assert (
        "own_gaol.py does not exist; a Python file was expected. Did you mean"
        in capsys.readouterr().err
    )
    assert main(["eval", "x", "--import", "nothing_there_x"]) == 2
    assert "nothing_there_x does not import: ModuleNotFoundError" in capsys.readouterr().err


def test_another_file_of_the_same_name_or_a_new_text_takes_the_place_of_the_old(write, tmp_path):
    text = (
        "from llama_jax import presets, edit\na = edit(presets.get('tiny_decoder'), 'steps', {})\n"
    )
    (tmp_path / "other").mkdir()
    assert user_code.run_of(write(text.format(3), "one_run.py")).steps == 3
    assert user_code.run_of(write(text.format(44), "one_run.py")).steps == 44
    assert user_code.run_of(write(text.format(5), "other/one_run.py")).steps == 5


PARTS = """
import dataclasses
import flax.linen as nn
import jax.numpy as jnp
from llama_jax import Run, edit, presets, trees
from llama_jax.axes import Rules
from llama_jax.data.sources import Rows
from llama_jax.objectives import Objective

@dataclasses.dataclass(frozen=True)
class Goal(Objective):
    gives: object = ()
    needs = ("tokens",)

    def __call__(self, acts):
        return Rules(self.gives, ()) if self.gives != () else jnp.ones(3) @ jnp.ones(4)

class Net(nn.Module):
    def __call__(self, x):
        return x if x.sum() > 0 else -x

@dataclasses.dataclass(frozen=True)
class Part:
    def build(self, name):
        return Net(name=name)

@dataclasses.dataclass(frozen=True)
class Empty:
    def open(self):
        return Rows("empty", 9, lambda index: {}[index])

@dataclasses.dataclass(frozen=True)
class Lost(Goal):
    def __call__(self, acts):
        return trees.nested(3)

small = edit(edit(presets.get("tiny_decoder"), "model.vocab", 300), "tokenizer.vocab", 300)
goal = edit(small, "objectives", {"lm": Goal(on="text")})
letter = edit(small, "objectives", {"lm": Goal(on="text", gives=(("?", "data"),))})
ours = edit(small, "objectives", {"lm": Lost(on="text")})
block = edit(small, "model.stack.pattern.0.ffn", Part())
source = edit(small, "data.text.source", Empty())
"""


@pytest.mark.parametrize(
    ("name", "lines"),
    [
        ("goal", ["Goal.__call__ fails: TypeError: dot_general requires", "parts.py, line 16, in",
                  "return Rules("]),
        ("letter", ["Goal.__call__ fails: UserError: unknown axis letter", "parts.py, line 16, in",
                    "return Rules("]),
        ("block", ["Net.__call__ fails: TracerBoolConversionError: Attempted", "parts.py, line 20",
                   "return x if"]),
        ("source", ["Empty.open.<locals>.<lambda> fails: KeyError: 0", "parts.py, line 30",
                    "return Rows"]),
    ],
)  # fmt: skip
def test_code_that_fails_within_training_is_shown_in_three_lines(write, capsys, name, lines):
    text = write("Lamb saw the sea.\n\n" * 60, "text.txt")
    words = ["train", f"{write(PARTS, 'parts.py')}:{name}", "--run-dir", "x", "--quiet"]
    if name != "source":
        words += ["--data.text.source", text]
    assert main(words) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("llama-jax: ") and err.count("\n") == 3, err
    assert all(part in line for part, line in zip(lines, err.splitlines(), strict=True)), err


@pytest.mark.parametrize(("name", "debug"), [("ours", ""), ("goal", "1")])
def test_a_fault_of_ours_or_a_search_for_faults_shows_all(write, monkeypatch, name, debug):
    text = write("Lamb saw the sea.\n\n" * 60, "text.txt")
    monkeypatch.setenv("LLAMA_JAX_DEBUG", debug)
    with pytest.raises((TypeError, AttributeError), match="dot_general|no attribute 'items'"):
        main(["train", f"{write(PARTS, 'parts.py')}:{name}", "--run-dir", "x", "--quiet",
              "--data.text.source", text])  # fmt: skip
