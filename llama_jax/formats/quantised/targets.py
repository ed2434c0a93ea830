"""Which modules a group of compressed-tensors means: by name, by pattern or by class.

A pattern is a regular expression of a file that nobody vouches for, and Python's matcher takes
centuries over some. Those that are written for modules have few repetitions and alternatives, and
one with more is refused.
"""

import re
from typing import Any

PATTERN = "re:"
CLASSES = ("Linear", "Embedding")
LONGEST_NAME = 100  # of a module that is matched; Llama's have some 40 characters
LONGEST = 500  # of a pattern
MOST = 5  # repetitions and groups
MOST_ALTERNATIVES = 40


def is_target(target: Any) -> bool:
    """Whether a value of a config is a target that can be looked for."""
    if not isinstance(target, str) or len(target) > LONGEST:
        return False
    if not target.startswith(PATTERN):
        return True
    pattern = target.removeprefix(PATTERN)
    # A question mark behind a bracket says what kind of group it is, and repeats nothing.
    parts = len(re.findall(r"(?<!\\)(?:[*+{(]|(?<!\()\?)", pattern))
    repeated = re.search(r"\)[*+{]", pattern)
    try:
        re.compile(pattern)
    except (re.error, RecursionError, OverflowError):
        return False
    return parts <= MOST and not repeated and pattern.count("|") <= MOST_ALTERNATIVES


def fits(target: str, module: str) -> bool:
    """Whether a module is meant; files name no classes, so its is guessed from its name."""
    if target.startswith(PATTERN):
        pattern = target.removeprefix(PATTERN)
        return len(module) <= LONGEST_NAME and re.match(pattern, module) is not None
    return target in (module, "Embedding" if "embed" in module.rpartition(".")[2] else "Linear")


def precedence(target: str) -> tuple[bool, bool, str]:
    """Names before patterns before classes, and these by the alphabet, as the package has it."""
    return target in CLASSES, target.startswith(PATTERN), target
