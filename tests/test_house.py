"""House rules that a machine can check; ruff and basedpyright check the others."""

import ast
import pathlib
import re
import subprocess
from collections.abc import Iterator

import pytest

ROOT = pathlib.Path(__file__).parent.parent
SOURCES = sorted((ROOT / "llama_jax").rglob("*.py"))
MOST_LINES = 500

# Modules whose loaders run what they read.
RUNS_WHAT_IT_READS = {"pickle", "cPickle", "dill", "cloudpickle", "marshal", "shelve", "joblib"}
FORBIDDEN_CALLS = {"eval", "exec", "yaml.load", "torch.load"}
# Meta publishes its weights as pickles only. One file opens them, on demand, as tensors alone.
ALLOWED_CALLS = {"llama_jax/formats/pth.py": ("torch.load", "weights_only=True")}
FORBIDDEN_ARGUMENTS = {"trust_remote_code", "allow_pickle"}

# Homes, mounts and work folders belong to one machine. Split so that this line is not a find.
MACHINE_PATH = re.compile(
    r"(?<![\w.~$}<)])/(?:" + "home|root|Users|work|mnt|media|scratch" + r")/\w"
)


ERRORS = {"UserError", "FormatError"}
# What an entry of a docstring may begin with in upper case: names.
PROPER = {
    "Hugging",
    "Jinja",
    "SentencePiece",
    "Meta",
    "Meta's",
    "Llama",
    "Kullback-Leibler",
    "None",
}


def named(path: pathlib.Path) -> str:
    return str(path.relative_to(ROOT))


@pytest.mark.parametrize("path", SOURCES, ids=named)
def test_a_file_has_one_subject_and_few_lines(path):
    if "kernels" not in path.relative_to(ROOT).parts:
        lines = len(path.read_text(encoding="utf-8").splitlines())
        assert lines <= MOST_LINES, f"{named(path)} has {lines} lines; split it along its subjects"


@pytest.mark.parametrize("path", SOURCES, ids=named)
def test_reading_a_file_never_runs_it(path):
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        where = f"{named(path)}:{getattr(node, 'lineno', 0)}"
        if isinstance(node, ast.Import | ast.ImportFrom):
            modules = [a.name for a in node.names] + [getattr(node, "module", None) or ""]
            assert not RUNS_WHAT_IT_READS & {m.split(".")[0] for m in modules}, where
        if isinstance(node, ast.Call):
            call, text = ast.unparse(node.func), ast.unparse(node)
            allowed, argument = ALLOWED_CALLS.get(path.relative_to(ROOT).as_posix(), ("", ""))
            assert call not in FORBIDDEN_CALLS or (call == allowed and argument in text), where
            for argument in node.keywords:
                harmless = isinstance(argument.value, ast.Constant) and not argument.value.value
                assert argument.arg not in FORBIDDEN_ARGUMENTS or harmless, where
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            assert "trust_remote_code" not in node.value, where


@pytest.mark.parametrize("path", SOURCES, ids=named)
def test_public_methods_have_docstrings(path):
    # Of a module or an objective, the class says what its `setup` and `__call__` do.
    told_by_class = {"setup", "__call__"}
    for cls in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if not isinstance(cls, ast.ClassDef) or cls.name.startswith("_"):
            continue
        for method in cls.body:
            if isinstance(method, ast.FunctionDef) and not ast.get_docstring(method):
                where = f"{named(path)}:{method.lineno} {cls.name}.{method.name}"
                private = method.name.startswith("_") and method.name != "__call__"
                assert private or (method.name in told_by_class and ast.get_docstring(cls)), where


def docstrings(path: pathlib.Path) -> Iterator[tuple[int, str]]:
    """Line and text of every docstring, indented as in the file."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef):
            if (text := ast.get_docstring(node, clean=False)) is not None:
                yield node.body[0].lineno, text


def entries(text: str) -> Iterator[tuple[int, str, str, str]]:
    """What stands below Args, Attributes and Raises: line, heading, name and first line of each.

    A line that is indented neither as an entry nor as the next line of one has no name.
    """
    heading, margin, begun = "", 0, False
    for number, line in enumerate(text.splitlines()):
        indent = len(line) - len(line.lstrip())
        entry = re.fullmatch(r" *(\*{0,2}\w[\w, `*.]*): (.*)", line)
        if begin := re.fullmatch(r" *(Args|Attributes|Raises):", line):
            heading, margin, begun = begin[1], indent, False
        elif not line.strip():
            heading = ""
        elif heading and entry and indent == margin + 2:
            begun = True
            yield number, heading, entry[1], entry[2]
        elif heading and not (begun and indent == margin + 4):
            yield number, heading, "", line.strip()


@pytest.mark.parametrize("path", SOURCES, ids=named)
def test_docstrings_are_of_one_dialect(path):
    for begin, text in docstrings(path):
        where = f"{named(path)}:{begin}"
        assert not re.match(r"\s*Returns\b", text), f"{where} say what comes, without 'Returns'"
        for number, heading, name, entry in entries(text):
            where = f"{named(path)}:{begin + number} {entry!r}"
            assert name, f"{where}: indent an entry by two spaces, its next lines by four"
            word = (re.match(r"[\w'-]*", entry) or [""])[0]
            assert word in PROPER or not re.fullmatch("[A-Z][a-z'-]+", word), (
                f"{where}: begin in lower case"
            )
            wrong = "[Ii]f" if heading == "Raises" else "of|it|its|they|them|those|that"
            assert not re.match(rf"({wrong})\b", entry), f"{where}: does not stand alone"


def endings(message: ast.expr) -> Iterator[str]:
    """The last words of a message, as far as they are written out."""
    match message:
        case ast.BinOp(right=right):
            yield from endings(right)
        case ast.IfExp(body=body, orelse=other):
            yield from (*endings(body), *endings(other))
        case ast.JoinedStr(values=[*_, ast.Constant(value=str(text))]):
            yield text
        case ast.Constant(value=str(text)):
            yield text


@pytest.mark.parametrize("path", SOURCES, ids=named)
def test_a_message_ends_without_a_full_stop(path):
    """One of several sentences too: only what stands between two of them is a full stop."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call) and ast.unparse(node.func) in ERRORS and node.args:
            for text in endings(node.args[0]):
                assert not text.endswith("."), f"{named(path)}:{node.lineno} {text[-60:]!r}"


def test_no_tracked_file_names_a_path_of_one_machine():
    listing = subprocess.run(
        ["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    if listing.returncode:
        pytest.skip("not a git checkout")
    finds = []
    for name in filter(None, listing.stdout.split("\0")):
        path = ROOT / name
        try:
            lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
        except UnicodeDecodeError:
            continue  # a picture or an array
        finds += [f"{name}:{n}" for n, line in enumerate(lines, 1) if MACHINE_PATH.search(line)]
    assert finds == []
