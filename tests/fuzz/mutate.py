"""Damaged files, read in children that may not hang, grow or die.

A target is a function `read(data: bytes, folder: Path)` that opens one damaged file; `folder` is
an empty scratch folder for readers that want a path. It returns when the file was loaded *and
checked*, or raises FormatError. Anything else is a problem: another exception (a Rust panic is a
BaseException and counts), a message of several lines, a dead child, a file that took too long.

    def read(data, folder):
        (folder / "x.gguf").write_bytes(data)
        gguf.open(folder / "x.gguf")

    def test_damaged_files_are_refused_by_type():
        report = run("tests.fuzz.test_gguf:read", damaged(GOOD, 2000))
        assert not report.problems, report
        assert report.loaded and report.refused, report     # else the seed or the mutations are off

`damaged` changes bytes, `damaged_json` changes values, keys and nesting and leaves valid JSON; both
give the same list for the same seed. `run(..., memory=..., seconds=...)` moves the limits. Problems
carry the number of their case: `damaged(GOOD, 2000)[17]` is the file to debug with.
"""

import copy
import dataclasses
import importlib
import json
import os
import random
import resource
import select
import shutil
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
GIB = 1 << 30

# Where counters overflow and signs turn.
EDGES = (
    0,
    1,
    0x7F,
    0xFF,
    0x7FFF,
    0xFFFF,
    2**31 - 1,
    2**31,
    2**32 - 1,
    2**40,
    2**62,
    2**63,
    2**64 - 1,
)
VALUES = (
    None, True, False, 0, -1, 1, 2**31, 2**32 - 1, 2**63, 10**40, 1e308, -0.5, "", "a", "\0",
    "\ud800", "../../x", "(ab)+", "a" * 70_000, [], {}, [[]], [None], {"": None}, {"type": "?"},
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Problem:
    """What went wrong with one case."""

    case: int
    kind: str  # "raised", "died" or "late"
    detail: str


@dataclasses.dataclass
class Report:
    """How many files were loaded and refused, and every problem."""

    loaded: int = 0
    refused: int = 0
    slowest: float = 0.0  # seconds
    problems: list[Problem] = dataclasses.field(default_factory=list)

    def __str__(self) -> str:
        found = "".join(f"\n  {p.case}: {p.kind}: {p.detail}" for p in self.problems[:20])
        return (
            f"{self.loaded} loaded, {self.refused} refused, {len(self.problems)} problems, "
            f"slowest {self.slowest:.2f} s{found}"
        )


def damaged(original: bytes, count: int, seed: int = 0) -> list[bytes]:
    """Returns `count` versions of a file with one to four changes of bytes each."""
    dice = random.Random(seed)
    made = []
    for _ in range(count):
        data = bytearray(original)
        for _ in range(dice.choice((1, 1, 1, 2, 4))):
            dice.choice(_CHANGES)(data, dice)
        made.append(bytes(data))
    return made


def damaged_json(original: bytes, count: int, seed: int = 0) -> list[bytes]:
    """Returns `count` versions of a JSON file with one to three values or branches changed."""
    dice = random.Random(seed)
    tree = json.loads(original)
    made = []
    for _ in range(count):
        changed = {"": copy.deepcopy(tree)}
        for _ in range(dice.choice((1, 1, 2, 3))):
            _change_tree(changed, dice)
        # Lone surrogates stay as escapes: readers have to bear them.
        made.append(json.dumps(changed.get("", None)).encode())
    return made


def run(
    target: str, cases: Sequence[bytes], *, memory: int = 3 * GIB, seconds: float = 10.0
) -> Report:
    """Reads every case by `target` ("package.module:function") in a child, and tells the outcomes.

    One child reads many cases in turn; after a death or a late case a new one goes on.

    Args:
        target: What to call with the bytes and an empty folder.
        cases: The files.
        memory: Address space of the child in bytes, everything it imported included.
        seconds: Wall time for one case.
    """
    report = Report()
    child = None
    with tempfile.TemporaryDirectory() as scratch:
        for number, case in enumerate(cases):
            child = child or _Child(target, memory, Path(scratch))
            begin = time.perf_counter()
            kind, detail = child.read(case, seconds)
            report.slowest = max(report.slowest, time.perf_counter() - begin)
            if kind == "loaded":
                report.loaded += 1
            elif kind == "refused":
                report.refused += 1
            else:
                report.problems.append(Problem(number, kind, detail))
            if kind in ("died", "late"):
                child.end()
                child = None
        if child:
            child.end()
    return report


class _Child:
    """A process that reads a length and as many bytes, and answers with a line of JSON."""

    def __init__(self, target: str, memory: int, scratch: Path):
        self.errors = tempfile.TemporaryFile()
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.fuzz.mutate", target, str(memory), str(scratch)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.errors,
            cwd=ROOT,
            env={**os.environ, "RAYON_NUM_THREADS": "1", "JAX_PLATFORMS": "cpu"},
        )
        if self.answer(120.0) != "ready":
            words = self.last_words()
            self.end()
            raise RuntimeError(f"{target} could not be imported: {words}")

    def read(self, case: bytes, seconds: float) -> tuple[str, str]:
        assert self.process.stdin
        try:
            self.process.stdin.write(struct.pack("<Q", len(case)) + case)
            self.process.stdin.flush()
        except BrokenPipeError:
            return "died", self.last_words()
        answer = self.answer(seconds)
        if answer is None:
            return "late", f"more than {seconds:g} s"
        if not answer:
            return "died", f"exit code {self.process.wait()}: {self.last_words()}"
        return tuple(json.loads(answer))

    def answer(self, seconds: float) -> str | None:
        """The next line, "" if there is none to come, None if it does not come in time."""
        assert self.process.stdout
        ready, _, _ = select.select([self.process.stdout], [], [], seconds)
        return self.process.stdout.readline().decode().strip() if ready else None

    def last_words(self) -> str:
        """What faulthandler said, or else the end of what the child printed."""
        self.errors.seek(0)
        said = self.errors.read().decode("utf-8", "replace").strip()
        fatal = said.rfind("Fatal Python error")
        return (said[fatal:][:400] if fatal >= 0 else said[-400:]).replace("\n", " | ")

    def end(self) -> None:
        self.process.kill()
        self.process.communicate()
        self.errors.close()


def _serve(target: str, memory: int, scratch: Path) -> None:
    """The child: one case after another until the input ends."""
    import faulthandler

    faulthandler.enable()
    # Answers have a channel of their own: a library may print.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    module, _, name = target.partition(":")
    read = getattr(importlib.import_module(module), name)
    resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    print("ready", file=answers, flush=True)
    while length := sys.stdin.buffer.read(8):
        case = sys.stdin.buffer.read(*struct.unpack("<Q", length))
        folder = scratch / f"{os.getpid()}"
        folder.mkdir()
        outcome = _outcome(read, case, folder)
        shutil.rmtree(folder)
        print(json.dumps(outcome), file=answers, flush=True)


def _outcome(read: Callable[[bytes, Path], Any], case: bytes, folder: Path) -> tuple[str, str]:
    from llama_jax.errors import FormatError

    try:
        read(case, folder)
    except FormatError as error:
        if len(str(error).splitlines()) != 1:
            return "raised", f"FormatError of several lines: {str(error)[:300]!r}"
        return "refused", ""
    except BaseException as error:  # a Rust panic is no Exception
        return "raised", f"{type(error).__module__}.{type(error).__name__}: {str(error)[:300]!r}"
    return "loaded", ""


def _span(data: bytearray, dice: random.Random) -> slice:
    start = dice.randrange(len(data) + 1)
    return slice(start, min(len(data), start + dice.choice((1, 2, 4, 8, 16, 64, 1024))))


def _flip_bit(data: bytearray, dice: random.Random) -> None:
    if data:
        data[dice.randrange(len(data))] ^= 1 << dice.randrange(8)


def _set_bytes(data: bytearray, dice: random.Random) -> None:
    place = _span(data, dice)
    data[place] = dice.randbytes(place.stop - place.start)


def _set_edge(data: bytearray, dice: random.Random) -> None:
    size = dice.choice((1, 2, 4, 8))
    start = dice.randrange(len(data) + 1)
    number = dice.choice(EDGES) & (1 << 8 * size) - 1
    data[start : start + size] = number.to_bytes(size, dice.choice(("little", "big")))


def _cut_end(data: bytearray, dice: random.Random) -> None:
    del data[dice.randrange(len(data) + 1) :]


def _remove(data: bytearray, dice: random.Random) -> None:
    del data[_span(data, dice)]


def _repeat(data: bytearray, dice: random.Random) -> None:
    place = _span(data, dice)
    data[place] = data[place] * dice.choice((2, 3, 50))


def _move(data: bytearray, dice: random.Random) -> None:
    piece = data[_span(data, dice)]
    start = dice.randrange(len(data) + 1)
    data[start:start] = piece


_CHANGES = (
    _flip_bit,
    _flip_bit,
    _set_bytes,
    _set_edge,
    _set_edge,
    _cut_end,
    _remove,
    _repeat,
    _move,
)


def _change_tree(tree: Any, dice: random.Random) -> None:
    """Changes one node. Walks to a random depth, for most nodes of a file are in one branch."""
    parent, depth = tree, dice.randrange(1, 7)
    while True:
        keys = list(parent) if isinstance(parent, dict) else list(range(len(parent)))
        key = dice.choice(keys)
        depth -= 1
        if depth <= 0 or not isinstance(parent[key], dict | list) or not parent[key]:
            break
        parent = parent[key]
    match dice.randrange(6):
        case 0:
            del parent[key]
        case 1:  # another value of the same file
            parent[key] = copy.deepcopy(parent[dice.choice(keys)])
        case 2:
            parent[key] = [parent[key]] if dice.random() < 0.5 else {"x": parent[key]}
        case 3 if isinstance(parent, dict):  # under another name
            parent[dice.choice(("", "x", str(key) + "x"))] = parent.pop(key)
        case 3:
            parent.append(copy.deepcopy(parent[key]))
        case 4 if isinstance(parent[key], int | float):
            parent[key] = dice.choice((parent[key] + 1, parent[key] - 1, -parent[key], *EDGES))
        case _:
            parent[key] = copy.deepcopy(dice.choice(VALUES))
    tree.setdefault("", None)


if __name__ == "__main__":
    _serve(sys.argv[1], int(sys.argv[2]), Path(sys.argv[3]))
