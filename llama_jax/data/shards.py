"""Prepared data: documents that were tokenised once, in ArrayRecord files with a manifest.

prepared/kjv/
    manifest.json              what is in it, and what each file must be
    tokens-00000.array_record  one document a record: its ids, little-endian, <bos> and <eos> too
    tokenizer.json             what turned text into ids

`llama-jax prepare` makes such a folder (`prepare.py`), packed streams read it (`packing.py`).
"""

import dataclasses
import hashlib
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from llama_jax.data.catalogue import Rows
from llama_jax.data.lines import existing, joined
from llama_jax.errors import UserError
from llama_jax.text.digest import digest
from llama_jax.text.tokenizer import Vocabulary

MANIFEST = "manifest.json"
FORMAT = "llama_jax prepared 1"
SHOWN = 12  # characters of a digest in a message


@dataclasses.dataclass(frozen=True)
class Shard:
    """One file of prepared data.

    Attributes:
        file: Its name.
        documents: Records in it.
        tokens: Ids in them.
        empty: Rows of the source without two ids, which are left out.
        bytes: Its size.
        sha256: Of its bytes, in hex.
    """

    file: str
    documents: int
    tokens: int
    empty: int
    bytes: int
    sha256: str


@dataclasses.dataclass(frozen=True)
class Manifest:
    """What a folder of prepared data says of itself.

    Attributes:
        tokenizer: Digest of what made the ids (`text.digest`).
        vocab: Every id is below it.
        dtype: Of the ids, "<u2" or "<u4".
        source: The source that was read, as JSON.
        field: The field of its rows that held the text; None for "text" or "sentences".
        rows: Its rows.
        files: Fingerprint of the files that it reads; None if it names none, or in older folders.
        shard_rows: Rows that a shard was made of.
        version: Of llama_jax.
        shards: The files, in the order of the source.
    """

    tokenizer: str
    vocab: int
    dtype: str
    source: Mapping[str, Any]
    field: str | None
    rows: int
    files: str | None
    shard_rows: int
    version: str
    shards: tuple[Shard, ...]

    documents = property(lambda self: sum(shard.documents for shard in self.shards))
    tokens = property(lambda self: sum(shard.tokens for shard in self.shards))
    empty = property(lambda self: sum(shard.empty for shard in self.shards))
    pairs = property(
        lambda self: self.tokens - self.documents
    )  # an id and the next: what rows hold

    @property
    def content(self) -> str:
        """A digest of all documents; a run goes on with the same ones only."""
        return hashlib.sha256("".join(shard.sha256 for shard in self.shards).encode()).hexdigest()

    def to_json(self) -> str:
        """The file, with totals for people."""
        totals = {"documents": self.documents, "tokens": self.tokens, "empty": self.empty}
        return json.dumps({"format": FORMAT, **totals, **dataclasses.asdict(self)}, indent=1) + "\n"

    @classmethod
    def read(cls, folder: Path, name: str = MANIFEST) -> "Manifest":
        """Reads the manifest of a folder.

        Raises:
            UserError: If there is none, or it is no such file.
        """
        path = folder / name
        if not path.is_file():
            begun = any(folder.glob("*.array_record"))
            raise UserError(
                f"{str(folder)!r} holds no {MANIFEST}; "
                + (
                    "it was not prepared to the end: give the same `llama-jax prepare` again."
                    if begun
                    else "expected a folder that `llama-jax prepare SOURCE OUT` made."
                )
            )
        try:
            value = {"files": None} | json.loads(path.read_text(encoding="utf-8"))
            if value["format"] != FORMAT:
                raise KeyError(value["format"])
            shards = tuple(Shard(**shard) for shard in value["shards"])
            keys = [item.name for item in dataclasses.fields(cls)]
            fields: dict[str, Any] = {key: value[key] for key in keys}
            fields["shards"] = shards
            return cls(**fields)
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise UserError(
                f"{str(path)!r} is not a manifest of prepared data of format {FORMAT!r} "
                f"({type(error).__name__}: {error}); prepare the data again."
            ) from None

    def check(self, tokenizer: Vocabulary, where: str) -> None:
        """Checks that `tokenizer` is the one that made the ids.

        Raises:
            UserError: If it is another; both digests are named.
        """
        mine = digest(tokenizer)
        if mine != self.tokenizer:
            raise UserError(
                f"{where} was prepared with the tokenizer {self.tokenizer[:SHOWN]} "
                f"({self.vocab} ids), the run has {mine[:SHOWN]} ({tokenizer.vocab} ids); take "
                f"--set tokenizer={where.strip(chr(39))}, or prepare the data with the run's."
            )


@dataclasses.dataclass(frozen=True)
class Prepared:
    """A folder that `llama-jax prepare` made: documents as token ids.

    Attributes:
        path: The folder.
    """

    path: str

    def open(self) -> "TokenRows":
        """Checks that every shard is there and as long as it should be.

        Raises:
            UserError: If one is missing, empty or torn; it is named.
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
        manifest: Of the folder.
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
            "`llama-jax prepare` again, which makes damaged shards anew."
        )

    def check(self, tokenizer: Vocabulary) -> None:
        """Raises UserError unless `tokenizer` is the one that made the ids."""
        self.manifest.check(tokenizer, self.name)


@dataclasses.dataclass(frozen=True)
class Mix:
    """Several prepared folders, read by weight; for packed streams.

    Attributes:
        sources: The folders.
        weights: Share of the tokens that each gives; they need not sum to 1.
    """

    sources: tuple[Prepared, ...]
    weights: tuple[float, ...]

    def __post_init__(self) -> None:
        """Checks the values."""
        if len(self.sources) != len(self.weights) or not self.sources:
            raise UserError(
                f"a mix of {len(self.sources)} sources has {len(self.weights)} weights; expected "
                "one for each."
            )
        if not all(0 < weight < math.inf for weight in self.weights):
            raise UserError(f"weights={self.weights}; expected numbers above 0.")

    @property
    def shares(self) -> tuple[float, ...]:
        """The weights, summing to 1."""
        return tuple(weight / sum(self.weights) for weight in self.weights)

    def open(self) -> Tokenised:
        """Opens all documents once, one source after the other, for evaluation.

        Raises:
            UserError: As `Prepared.open`.
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


def check_size(folder: Path, shard: Shard) -> None:
    """Checks that a shard is there and has its size.

    Raises:
        UserError: If not; it is named.
    """
    path = folder / shard.file
    size = path.stat().st_size if path.is_file() else None
    if size == shard.bytes:
        return
    what = "is missing" if size is None else "is empty" if size == 0 else "is torn"
    have = "" if not size else f" ({size:,} of {shard.bytes:,} bytes)"
    raise UserError(
        f"shard {str(path)!r} {what}{have}; give the same `llama-jax prepare` again, which makes "
        "damaged shards anew, or copy the folder again."
    )


def sha256(path: Path) -> str:
    """Returns the digest of a file, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
