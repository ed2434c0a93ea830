"""The pages that readers see, and their examples by a word that only one of them has."""

import re
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[1]
PLACES = [
    *sorted(ROOT.glob("*.md")),
    *sorted(ROOT.glob("docs/*.md")),
    ROOT / "experiments/README.md",
]
TEXTS = {str(path.relative_to(ROOT)): path.read_text(encoding="utf-8") for path in PLACES}


class Block(NamedTuple):
    """A piece of code on a page; `kind` is what stands behind its three ticks."""

    page: str
    kind: str
    code: str


BLOCKS = [
    Block(page, *found)
    for page, text in TEXTS.items()
    for found in re.findall(r"^```(\w+)\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
]


def example(word: str, kind: str = "python") -> str:
    """The one example in which a word stands."""
    [code] = [block.code for block in BLOCKS if block.kind == kind and word in block.code]
    return code


def run_example(code: str) -> dict:
    """Runs it as it is written; gives its names."""
    names = {"__name__": "example"}
    exec(compile(code, "example", "exec"), names)
    return names
