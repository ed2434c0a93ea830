"""Numbers in words, from English into French, German, Spanish and Chinese.

Source: the PyPI packages `num2words` (LGPL) and, for Chinese, which that lacks, `cn2an` (MIT).
Their words are taken as they are: the Spanish of `num2words` says "veintiuno mil" where grammars
ask for "veintiún mil".

Which numbers: all below 1,000, 4,000 each of 4, 5 and 6 digits, and the round millions from one to
999. Those of 7, 8 and 9 digits that are not round, 500 each, are the split `longer`: no training
text is as long, but every word of theirs is in one. A number belongs to a split by its CRC, in all
four languages; those below 100 and the million are words that nothing else teaches, and all for
training.

Examples (four a number, measured): train 47,844, validation 2,788, test 5,364, longer 6,000.
"""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from llama_jax.data.builders.prepare import package
from llama_jax.data.builders.texts import SPLITS, Row, Texts, bucket, split_of

LANGUAGES = {"fr": "French", "de": "German", "es": "Spanish", "zh": "Chinese"}
MILLION = 1_000_000
ALWAYS_TRAINED = (*range(100), MILLION)  # words that nothing else teaches


def drawn(digits: int, count: int) -> list[int]:
    """Distinct numbers of so many digits, the same ones always, in the order of their drawing."""
    least = 10 ** (digits - 1)
    found: dict[int, None] = {}
    draw = 0
    while len(found) < count:
        found[least + bucket(f"{digits} digits, draw {draw}", 9 * least)] = None
        draw += 1
    return list(found)


def numbers(split: str) -> Iterator[int]:
    """The numbers of a split."""
    if split == "longer":
        for digits in (7, 8, 9):
            yield from (number for number in drawn(digits, 500) if number % MILLION)
        return
    yield from (n for n in range(1000) if number_split(n) == split)
    yield from (n for n in range(MILLION, 1000 * MILLION, MILLION) if number_split(n) == split)
    for digits in (4, 5, 6):
        yield from (number for number in drawn(digits, 4000) if number_split(number) == split)


def number_split(number: int) -> str:
    """The split of a number that is not of `longer`."""
    return "train" if number in ALWAYS_TRAINED else split_of(str(number))


def writers() -> dict[str, Callable[[int], str]]:
    """What writes a number in words, by language.

    Raises:
      UserError: a package is missing.
    """
    words = package("num2words", "num2words", "tasks").num2words
    chinese = package("cn2an", "cn2an", "tasks").an2cn
    european = {code: _writer(words, code) for code in ("en", "fr", "de", "es")}
    return european | {"zh": lambda number: chinese(str(number))}


def _writer(words: Any, language: str) -> Callable[[int], str]:
    return lambda number: words(number, lang=language)


class NumberWords(Texts):
    """Builds `number_words`; `limit` keeps the first rows of each split (for tests)."""

    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES = {"1.0.0": "Four languages, numbers up to nine digits."}
    SPLITS = (*SPLITS, "longer")
    FIELDS = {"language": str, "number": np.int64}
    ABOUT = "Numbers in words, from English into four languages."
    HOMEPAGE = "https://github.com/savoirfairelinux/num2words"

    def rows(self, split: str) -> Iterator[Row]:
        """A number in its four languages, then the next one."""
        write = writers()
        for number in numbers(split):
            english = write["en"](number)
            for code, language in LANGUAGES.items():
                yield {
                    "source": english,
                    "target": write[code](number),
                    "task": f"translate to {language}",
                    "language": code,
                    "number": number,
                }
