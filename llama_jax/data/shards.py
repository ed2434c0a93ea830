"""Prepared data: documents that were tokenised once, in ArrayRecord files with a manifest.

prepared/kjv/
    manifest.json              what is in it, and what each file must be (`manifest.py`)
    tokens-00000.array_record  one document a record: its ids, little-endian, <bos> and <eos> too
    tokenizer.json             what turned text into ids

`llama-jax prepare` makes such a folder (`prepare.py`), packed streams read it (`packing.py`).
"""

import math
from pathlib import Path
from typing import Any

import numpy as np

from llama_jax.checked import checked
from llama_jax.data.manifest import Manifest, check_size
from llama_jax.data.rows import Rows
from llama_jax.data.text_files import existing, joined
from llama_jax.errors import UserError
from llama_jax.text.vocabulary import Vocabulary


@checked
class Prepared:
    """A folder that `llama-jax prepare` made: documents as token ids.

    Attributes:
      path: the folder.
    """

    path: str

    def open(self) -> "TokenRows":
        """Checks that every shard is there and as long as it should be.

        Raises:
          UserError: one is missing, empty or torn; it is named.
        """
        folder = existing(self.path, folder=True)
        manifest = Manifest.read(folder)
        for shard in manifest.shards:
            check_size(folder, shard)
        return TokenRows(self.path, folder, manifest)


class Tokenised(Rows):
    """Rows with `tokens` in the place of a text, which one tokenizer made."""

    def check(self, tokenizer: Vocabulary) -> None:
        """Raises UserError unless `tokenizer` is the one that made the ids."""
        raise NotImplementedError


class TokenRows(Tokenised):
    """Documents as `{"tokens": int32 [n]}`.

    Attributes:
      manifest: what the folder says that it holds.
    """

    def __init__(self, path: str, folder: Path, manifest: Manifest):
        """Opens the shards, each when it is first read."""
        from array_record.python.array_record_data_source import ArrayRecordDataSource

        self.manifest = manifest
        shards = [shard for shard in manifest.shards if shard.documents]
        super().__init__(repr(path), manifest.documents, self._document)
        self._shards, self._folder = shards, folder
        self._records = ArrayRecordDataSource(
            # With the records to read of each, so that no file is opened to count them.
            [f"{folder / shard.file}[0:{shard.documents}]" for shard in shards]
        )

    def _document(self, index: int) -> dict[str, Any]:
        try:
            ids = np.frombuffer(self._records[index], self.manifest.dtype).astype(np.int32)
        except Exception as error:  # array_record raises what its C++ status happens to become
            raise self._damaged(index, str(error).partition(" (")[0][:100]) from None
        if ids.size < 2 or ids.max() >= self.manifest.vocab:
            raise self._damaged(index, "ids that its manifest does not allow")
        return {"tokens": ids}

    def _damaged(self, index: int, why: str) -> UserError:
        ends = np.cumsum([shard.documents for shard in self._shards])
        shard = self._shards[int(np.searchsorted(ends, index, side="right"))]
        return UserError(
            f"shard {str(self._folder / shard.file)!r} is damaged ({why}); give the same "
            "`llama-jax prepare` again, which makes damaged shards anew"
        )

    def check(self, tokenizer: Vocabulary) -> None:
        """Raises UserError unless `tokenizer` is the one that made the ids."""
        self.manifest.check(tokenizer, self.name)


@checked
class Mix:
    """Several prepared folders, read by weight; for packed streams.

    Attributes:
      sources: the folders.
      weights: share of the tokens that each gives; they need not sum to 1.
    """

    sources: tuple[Prepared, ...]
    weights: tuple[float, ...]

    def __post_init__(self) -> None:
        """Checks the values."""
        if len(self.sources) != len(self.weights) or not self.sources:
            raise UserError(
                f"a mix of {len(self.sources)} sources has {len(self.weights)} weights; expected "
                "one for each"
            )
        if not all(0 < weight < math.inf for weight in self.weights):
            raise UserError(f"weights={self.weights}; expected numbers above 0")

    @property
    def shares(self) -> tuple[float, ...]:
        """The weights, summing to 1."""
        return tuple(weight / sum(self.weights) for weight in self.weights)

    def open(self) -> Tokenised:
        """Opens all documents once, one source after the other, for evaluation.

        Raises:
          UserError: as `Prepared.open`.
        """
        return _MixedRows([source.open() for source in self.sources])


class _MixedRows(Tokenised):
    def __init__(self, parts: list[TokenRows]):
        count, self._locate = joined(parts)
        self._parts = parts
        super().__init__(" and ".join(part.name for part in parts), count, self._document)

    def _document(self, index: int) -> dict[str, Any]:
        part, at = self._locate(index)
        return part[at]

    def check(self, tokenizer: Vocabulary) -> None:
        for part in self._parts:
            part.check(tokenizer)
