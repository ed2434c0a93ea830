"""The README, and its examples by a word that only one of them has."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```", TEXT, re.MULTILINE | re.DOTALL)


def example(word: str) -> str:
    """The one example in Python in which a word stands."""
    [block] = [block for kind, block in BLOCKS if kind == "python" and word in block]
    return block
