"""Questions of arithmetic, about numbers and comparisons, with their answers.

Source: the PyPI package `mathematics-dataset` (DeepMind, Apache-2.0; D. Saxton and others,
"Analysing Mathematical Reasoning Abilities of Neural Models", 2019), which makes them by chance.
Here the chance is fixed: question n of a module, of a level, is the same on every machine.

Splits are those of the paper: `train` is of three levels (easy, medium, hard; `level` says which),
`interpolate` of one difficulty within the hard third, `extrapolate` of larger numbers and longer
expressions. A question belongs to training or to the tests by its CRC as well, for short ones are
made again and again: one in four is for the tests only.

Left out: calculus, algebra, measurement, polynomials and probability; `round_number*`, which asks
Python's `randrange` for floats and gets an error from 3.12 on; `simplify_surd`, 20 times as slow as
the others; `sort_more`, for one answer in 200 is short enough.

Examples (measured): train 46,500 (31 modules, three levels), interpolate 3,100, extrapolate 900 (9
modules). Making them takes about a minute.
"""

import contextlib
import importlib
import random
import zlib
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from llama_jax.data.builders.prepare import package
from llama_jax.data.builders.texts import Row, Texts, bucket

AREAS = ("arithmetic", "numbers", "comparison")
LEVELS = ("easy", "medium", "hard")
LEFT_OUT = ("round_number", "simplify_surd", "sort_more")
COUNTS = {"train": 500, "interpolate": 100, "extrapolate": 100}  # a module, in training a level
TRIES = 20  # draws a question that is kept; small modules run out of new ones
LONGEST = {"question": 160, "answer": 30}  # characters, as the package's own generate.py has it
Make = Callable[[], Any]


class Mathematics(Texts):
    """Builds `mathematics`; `limit` keeps the first rows of each split (for tests)."""

    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES = {"1.0.0": "Arithmetic, numbers and comparison."}
    SPLITS = ("train", "interpolate", "extrapolate")
    FIELDS = {"module": str, "level": str}
    ABOUT = "Questions about numbers, made by rules, with short answers."
    HOMEPAGE = "https://github.com/google-deepmind/mathematics_dataset"

    def rows(self, split: str) -> Iterator[Row]:
        """One question of each module and level, then the next of each."""
        streams = [
            questions(split, level, name, make)
            for level, makers in modules(split).items()
            for name, make in makers.items()
        ]
        while streams:
            rows = [(stream, next(stream, None)) for stream in streams]
            yield from (row for _, row in rows if row)
            streams = [stream for stream, row in rows if row]


def questions(split: str, level: str, module: str, make: Make) -> Iterator[Row]:
    """Different questions of a module that belong to a split."""
    seen = set()
    for draw in range(COUNTS[split] * TRIES):
        problem = drawn(f"{split} {level} {module} {draw}", make)
        question, answer = str(problem.question), str(problem.answer)
        tested = bucket(question, 4) == 0
        fits = len(question) <= LONGEST["question"] and len(answer) <= LONGEST["answer"]
        if question in seen or tested is (split == "train") or not fits:
            continue
        seen.add(question)
        yield {
            "source": question,
            "target": answer,
            "task": "answer",
            "module": module,
            "level": level,
        }
        if len(seen) == COUNTS[split]:
            return


class InOrder:
    """`random` for code that draws from sets: it sorts first, so that no hash has a say."""

    def __getattr__(self, name: str) -> Any:
        return getattr(random, name)

    def choice(self, items: list[Any]) -> Any:
        """Draws one; letters in their order, for a set of them has none."""
        letters = all(isinstance(item, str) for item in items)
        return random.choice(sorted(items) if letters else items)

    def shuffle(self, items: list[Any]) -> None:
        """Shuffles objects that were in a set, by what they hold."""
        items.sort(key=lambda item: [str(value) for value in vars(item).values()])
        random.shuffle(items)


def drawn(name: str, make: Make) -> Any:
    """What `make` makes when chance is fixed by a name; Python and NumPy are as before afterwards.

    The package's primes come from sympy's generator, and the order of its letters from sets.
    """
    composition: Any = importlib.import_module("mathematics_dataset.util.composition")
    sympy_random = importlib.import_module("sympy.core.random")
    python, numpy = random.getstate(), np.random.get_state()
    seed = zlib.crc32(name.encode())
    try:
        composition.random = InOrder()
        random.seed(seed)
        np.random.seed(seed)
        sympy_random.seed(seed)
        return make()
    finally:
        composition.random = random
        random.setstate(python)
        np.random.set_state(numpy)


def modules(split: str) -> dict[str, dict[str, Make]]:
    """What makes the questions of a split, by level and by module ("numbers__gcd").

    Raises:
      UserError: the package is missing.
    """
    with _old_names():
        areas = {
            area: package(f"mathematics_dataset.modules.{area}", "mathematics-dataset", "tasks")
            for area in AREAS
        }

    def makers(name: str, *args: Any) -> dict[str, Make]:
        return {
            f"{area}__{module}": make
            for area, source in areas.items()
            for module, make in sorted(getattr(source, name)(*args).items())
            if not module.startswith(LEFT_OUT)
        }

    if split == "train":
        return {level: makers("train", _third(i)) for i, level in enumerate(LEVELS)}
    return {split: makers("test" if split == "interpolate" else "test_extra")}


def _third(i: int) -> Callable[[tuple[float, float]], tuple[float, float]]:
    """The i-th third of a range of entropies, from easy to hard."""

    def part(whole: tuple[float, float]) -> tuple[float, float]:
        least, most = whole
        return least + i * (most - least) / 3, least + (i + 1) * (most - least) / 3

    return part


@contextlib.contextmanager
def _old_names() -> Iterator[None]:
    """A name that sympy moved in 1.6 is where the package imports it from, while it does."""
    package("sympy", "sympy", "tasks")
    where = importlib.import_module("sympy.solvers.diophantine")
    name = "base_solution_linear"
    lent = not hasattr(where, name)
    if lent:
        now = importlib.import_module("sympy.solvers.diophantine.diophantine")
        setattr(where, name, getattr(now, name))
    try:
        yield
    finally:
        if lent:
            delattr(where, name)
