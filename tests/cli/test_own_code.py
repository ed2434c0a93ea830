"""A run of a stranger's own file, from the package as it is installed, outside the checkout."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import llama_jax

PACKAGE = Path(llama_jax.__file__).parent
FILE = Path(__file__).parent / "own" / "my_run.py"


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with a copy of the package to import and the stranger's file beside it."""
    place = tmp_path_factory.mktemp("stranger")
    ignored = shutil.ignore_patterns("__pycache__")
    shutil.copytree(PACKAGE, place / "site" / "llama_jax", ignore=ignored)
    work = place / "work"
    work.mkdir()
    shutil.copy(FILE, work)
    return work


def python(place, *words):
    """Runs Python in the stranger's folder: status, output, errors."""
    cache = os.environ.get("JAX_COMPILATION_CACHE_DIR", str(PACKAGE.parent / ".cache" / "xla"))
    environment = os.environ | {
        "PYTHONPATH": str(place.parent / "site"),
        "PYTHONSAFEPATH": "1",  # as of the installed command, the folder is not on the path
        "JAX_PLATFORMS": "cpu",
        "JAX_COMPILATION_CACHE_DIR": cache,
        "XLA_FLAGS": "",
    }
    done = subprocess.run(
        [sys.executable, *words], cwd=place, env=environment, capture_output=True, text=True
    )
    return done.returncode, done.stdout, done.stderr


@pytest.mark.slow
def test_a_strangers_file_trains_and_its_run_opens_where_the_file_is_named(place):
    words = ["-m", "llama_jax", "train", "my_run.py:run", "--run-dir", "runs/mine", "--quiet"]
    assert python(place, *words) == (0, "", "")
    saved = json.loads((place / "runs/mine/run.json").read_text())
    assert saved["model"]["stack"]["pattern"][0]["ffn"]["class"] == "my_run:SquaredReLU"
    assert list(saved["imports"]) == ["my_run.py"] and len(saved["imports"]["my_run.py"]) == 64

    # Not even the class of the model is looked for where nobody named the file.
    status, out, err = python(place, "-m", "llama_jax", "eval", "runs/mine")
    assert (status, out, err.count("\n")) == (2, "", 1)
    assert "name its file: --import my_run.py" in err

    known = ["--import", "my_run.py"]
    status, out, err = python(place, "-m", "llama_jax", "eval", "runs/mine", "--json", *known)
    assert status == 0 and json.loads(out)["metrics"]["ones"]["value"] == 1, err
    with (place / "my_run.py").open("a") as file:
        file.write("# another line\n")
    words = ["generate", "--weights", "runs/mine", "--prompt", "1 2", "--max-new-tokens", "2"]
    status, _, err = python(place, "-m", "llama_jax", *words, *known)
    assert status == 0 and "my_run.py has changed" in err


@pytest.mark.slow
def test_classes_of_a_script_that_is_run_are_found_by_the_files_name(place):
    status, out, err = python(place, "my_run.py")
    assert (status, out) == (0, "LM\n"), err
    saved = (place / "runs/script/run.json").read_text()
    assert "my_run:SquaredReLU" in saved and "__main__" not in saved
    load = "llama_jax.load('runs/script', imports='my_run.py')"
    code = f"import llama_jax; print({load}.logits([[1]]).shape)"
    status, out, err = python(place, "-c", code)
    assert (status, out) == (0, "(1, 1, 300)\n"), err
