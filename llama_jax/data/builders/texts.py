"""What the data sets of texts with answers share: the layout of a row, and which split has it.

Every row has `source`, `target` and `task`; `task` is an instruction in plain words, so that
`f"{task}: {source}"` is what a model reads and `target` what it should write. A data set adds
fields of its own. Rows whose text differs in letters' case, spaces and punctuation only are the
same row to `split_of`, so neither they nor duplicates can be on both sides of a split.
"""

import functools
import itertools
import re
import zlib
from collections.abc import Iterator
from typing import Any, ClassVar

import numpy as np
import tensorflow_datasets as tfds

SPLITS = ("train", "validation", "test")
NEITHER = re.compile(r"[\W_]+")  # letter nor digit, of any script
Row = dict[str, Any]


def key(text: str) -> str:
    """Letters and digits of a text, lower case: what must not be in two splits."""
    return NEITHER.sub("", text.casefold()) or text


def bucket(text: str, buckets: int) -> int:
    """A fixed number below `buckets` by the CRC of a text's letters and digits."""
    return zlib.crc32(key(text).encode()) % buckets


def split_of(text: str) -> str:
    """The split of a text: 5 % are for validation, 10 % for test."""
    return {0: "validation", 1: "test", 2: "test"}.get(bucket(text, 20), "train")


class Texts(tfds.core.GeneratorBasedBuilder):
    """A data set of texts; a subclass says what it holds, `rows` gives it.

    Attributes:
      SPLITS: names of its splits.
      FIELDS: further fields of a row, name to type: str, list (of texts), a NumPy type, or what
        makes a feature of TFDS.
      ABOUT: what it is, in one sentence.
      HOMEPAGE: where its package lives.
    """

    SPLITS: ClassVar[tuple[str, ...]] = SPLITS
    FIELDS: ClassVar[dict[str, Any]] = {}
    ABOUT: ClassVar[str]
    HOMEPAGE: ClassVar[str]

    def __init__(self, *, limit: int | None = None, **kwargs: Any):
        """Args: limit: Rows a split, or None for all; the rest as in TFDS."""
        self.limit = limit
        config = tfds.core.BuilderConfig(name=f"first_{limit}") if limit else None
        super().__init__(config=config, file_format="array_record", **kwargs)

    def rows(self, split: str) -> Iterator[Row]:
        """The rows of a split, always in the same order."""
        raise NotImplementedError(type(self).__name__)

    def _info(self) -> tfds.core.DatasetInfo:
        named = {"source": str, "target": str, "task": str} | self.FIELDS
        return tfds.core.DatasetInfo(
            builder=self,
            description=self.ABOUT,
            homepage=self.HOMEPAGE,
            features=tfds.features.FeaturesDict({n: _feature(t) for n, t in named.items()}),
            disable_shuffling=True,  # a fixed order; the loader shuffles
        )

    def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
        del dl_manager  # packages hold everything
        return {split: self._generate_examples(split) for split in self.SPLITS}

    def _generate_examples(self, split: str) -> Iterator[tuple[int, Row]]:
        return enumerate(itertools.islice(self.rows(split), self.limit))


def _feature(kind: Any) -> Any:
    if kind is str:
        return tfds.features.Text()
    if kind is list:
        return tfds.features.Sequence(tfds.features.Text())
    return kind() if isinstance(kind, functools.partial) else np.dtype(kind).type
