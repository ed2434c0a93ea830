"""Every notebook runs from top to bottom in a fresh kernel, in the time that it promises.

It runs in a folder of its own, with a copy of the package in place of an installed one: what it
needs beside the package would be missing.
"""

import re
import shutil
from pathlib import Path

import nbclient
import nbformat
import pytest

ROOT = Path(__file__).parents[2]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
SECONDS = 300  # a cell; on two cores that other processes use too
# Notebooks whose outputs are stored, for those who only read them: what they show does not change
# from run to run.
STORED = {"01_train_the_seed", "02_real_weights"}
MOST_BYTES = 300_000
# What a reader who has the package only does not have.
CHECKOUT = re.compile(
    r"\.\./|(?<![\w/.])(tests|docs|experiments|findings|notebooks|runs|shared)[/.]"
    r"|\bmake [a-z]|Makefile|requirements\.txt|pyproject\.toml"
)
MACHINE = re.compile(r"(^|[\s'\"(])(/\w+/|~/|[A-Z]:\\)|site-packages")  # paths of somebody's


def code(path):
    return [cell for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code"]


def kinds(cells):
    """What every cell gives: streams by name, others by what they can be shown as."""
    return [
        [out.get("name") or sorted(out.get("data", [out.output_type])) for out in cell.outputs]
        for cell in cells
    ]


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """A folder that holds a copy of the package and nothing else."""
    site = tmp_path_factory.mktemp("site")
    ignored = shutil.ignore_patterns("__pycache__")
    shutil.copytree(ROOT / "llama_jax", site / "llama_jax", ignore=ignored)
    return site


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
# What a kernel's client says of its own event loop and of files that it leaves open is not ours.
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_notebook_runs_to_its_end_outside_the_checkout_and_nothing_warns(
    path, site, tmp_path, monkeypatch
):
    # The kernel inherits these. Compiling is most of its work, so a second run finds it done.
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", str(ROOT / ".cache" / "notebooks"))
    monkeypatch.setenv("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.3")
    monkeypatch.setenv("XLA_FLAGS", "")
    monkeypatch.setenv("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
    monkeypatch.setenv("PYTHONPATH", str(site))
    monkeypatch.setenv("LLAMA_JAX_STEPS", "2")  # the stored outputs are of the whole
    monkeypatch.setenv("MPLBACKEND", "module://matplotlib_inline.backend_inline")  # as in Jupyter
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    notebook = nbformat.read(path, as_version=4)
    notebook.cells.append(nbformat.v4.new_code_cell("import llama_jax; print(llama_jax.__file__)"))
    nbclient.NotebookClient(
        notebook,
        timeout=SECONDS,
        kernel_name="python3",
        coalesce_streams=True,
        resources={"metadata": {"path": str(tmp_path)}},
    ).execute()
    (imported,) = notebook.cells.pop().outputs
    assert imported.text.strip() == str(site / "llama_jax" / "__init__.py")
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert all(cell.execution_count for cell in cells)
    # Warnings are written there, and a reader can do nothing about them.
    errors = [out.text for cell in cells for out in cell.outputs if out.get("name") == "stderr"]
    assert errors == []
    if path.stem in STORED:
        assert kinds(cells) == kinds(code(path))


@pytest.mark.parametrize("path", [p for p in NOTEBOOKS if p.stem in STORED], ids=lambda p: p.stem)
def test_stored_outputs_are_of_one_run_and_tell_nothing_of_the_machine(path):
    assert path.stat().st_size < MOST_BYTES
    cells = code(path)
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    for out in (out for cell in cells for out in cell.outputs):
        assert out.output_type != "error" and out.get("name") != "stderr"
        text = out.get("text") or out.get("data", {}).get("text/plain", "")
        assert not MACHINE.search(text), text


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_begins_with_what_installs_the_package_where_it_is_missing(path):
    first = code(path)[0].source
    assert 'find_spec("llama_jax") is None' in first and "%pip install" in first
    assert 'environ.get("LLAMA_JAX_PACKAGE"' in first


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_names_no_file_of_the_checkout(path):
    for cell in nbformat.read(path, as_version=4).cells:
        assert not CHECKOUT.search(cell.source), cell.source


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_where_nothing_is_installed_the_first_cell_asks_what_to_install(path, monkeypatch):
    monkeypatch.delenv("LLAMA_JAX_PACKAGE", raising=False)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    lines = code(path)[0].source.splitlines()
    plain = "\n".join("    pass" if "%pip" in line else line for line in lines)  # IPython's
    with pytest.raises(ImportError, match="wheel's path or a git"):
        exec(plain, {})


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_says_nothing_of_the_kernel_that_ran_it(path):
    notebook = nbformat.read(path, as_version=4)
    assert notebook.metadata == {
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
        "language_info": {"name": "python"},
    }
    assert [cell.id for cell in notebook.cells] == [
        f"cell-{number:02}" for number in range(len(notebook.cells))
    ]
    assert all(not cell.metadata for cell in notebook.cells)
