"""Runs of a stranger's own files, with the package as it is installed, outside the checkout."""

import json
import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import llama_jax
from tests.pages import example

PACKAGE = Path(llama_jax.__file__).parent
OTHER = Path(__file__).parent / "own" / "mine.py"
# The run of the README, made small.
SMALL = """--quiet --steps 1 --data.text.source numbers.txt --data.text.task.length 32
    --data.text.batch 2 --model.vocab 300 --tokenizer.vocab 300 --model.width 16
    --model.stack.pattern.0.ffn.hidden 32"""


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with the stranger's files, and beside it a copy of the package to import."""
    place = tmp_path_factory.mktemp("stranger")
    ignored = shutil.ignore_patterns("__pycache__")
    shutil.copytree(PACKAGE, place / "site" / "llama_jax", ignore=ignored)
    work = place / "work"
    work.mkdir()
    (work / "my_run.py").write_text(example("# my_run.py"))
    shutil.copy(OTHER, work)
    numbers = (" ".join(str(i + j) for j in range(9)) for i in range(40))
    (work / "numbers.txt").write_text("\n\n".join(numbers))
    return work


def python(place, *words, **variables):
    """Runs Python in the stranger's folder: status, output, errors."""
    cache = os.environ.get("JAX_COMPILATION_CACHE_DIR", str(PACKAGE.parent / ".cache" / "xla"))
    flags = [flag for flag in os.environ["XLA_FLAGS"].split() if "device_count" not in flag]
    environment = os.environ | {
        "PYTHONPATH": str(place.parent / "site"),
        "JAX_PLATFORMS": "cpu",
        "JAX_COMPILATION_CACHE_DIR": cache,
        "XLA_FLAGS": " ".join(flags),
    }
    done = subprocess.run(
        [sys.executable, *words],
        cwd=place,
        env=environment | variables,
        capture_output=True,
        text=True,
    )
    return done.returncode, done.stdout, done.stderr


def command(place, line):
    """Runs a line of the README; as for the installed command, the folder is not on the path."""
    return python(place, "-m", "llama_jax", *shlex.split(line)[1:], PYTHONSAFEPATH="1")


@pytest.mark.slow
def test_the_file_of_the_readme_trains_and_its_run_opens_where_the_file_is_named(place):
    train, evaluate, generate = example("runs/mine --optimizer.rate", "sh").splitlines()[:3]
    assert command(place, f"{train} {SMALL}") == (0, "", "")
    saved = json.loads((place / "runs/mine/run.json").read_text())
    assert saved["model"]["stack"]["pattern"][0]["ffn"]["class"] == "my_run:SquaredReLU"
    assert list(saved["imports"]) == ["my_run.py"] and len(saved["imports"]["my_run.py"]) == 64

    # The file that the run names is not run where nobody else names it.
    status, out, err = command(place, evaluate.partition(" --import")[0])
    assert (status, out, err.count("\n")) == (2, "", 1)
    assert "name its file: --import my_run.py" in err
    status, out, err = command(place, f"{evaluate} --json")
    assert status == 0 and "perplexity" in out and err == ""

    with (place / "my_run.py").open("a") as file:
        file.write("# another line\n")
    status, _, err = command(place, f"{generate} --max-new-tokens 2")
    assert status == 0 and "my_run.py has changed" in err, err


@pytest.mark.slow
def test_classes_of_a_script_that_is_run_are_found_by_the_files_name(place):
    status, out, err = python(place, "mine.py")
    assert (status, out) == (0, "LM\n"), err
    saved = json.loads((place / "runs/script/run.json").read_text())
    assert saved["objectives"]["lm"]["class"] == "mine:Halved"
    assert set(saved["imports"]) == {"mine.py", "my_run.py"}
    status, out, err = command(place, "llama-jax eval runs/script --json --import mine.py")
    assert status == 0 and json.loads(out)["metrics"]["ones"]["value"] == 1, err
