"""What a folder of prepared data says of itself, and whether that can be so.

The file is written by `prepare.py` alone and carries a digest of its own content, so that a change
by hand is noticed before a run trains on what it says.
"""

import dataclasses
import hashlib
import json
import re
import types
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from llama_jax.errors import FormatError, UserError
from llama_jax.text.files import NAMES
from llama_jax.text.vocabulary import Vocabulary

MANIFEST = "manifest.json"
BEGUN = f"{MANIFEST}.unfinished"
LOCK = ".lock"
# Ends the drafts that a killed process leaves: of files.whole_file, and of an earlier version.
DRAFT = re.compile(r"\.(\d+\.unfinished|draft)$")
FORMAT = "llama_jax prepared 1"
SHARD = re.compile(r"tokens-(\d{5,})\.array_record")
SHOWN = 12  # characters of a digest in a message


@dataclasses.dataclass(frozen=True)
class Shard:
    """One file of prepared data.

    Attributes:
      file: name of the shard's file.
      documents: records in it.
      tokens: ids in them.
      empty: rows of the source without two ids, which are left out.
      bytes: size of the file.
      sha256: digest of the file, in hex.
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
      tokenizer: digest of what made the ids (`text.digest`).
      vocab: every id is below it.
      dtype: how an id is stored, "<u2" or "<u4".
      source: the source that was read, as JSON.
      field: the field of its rows that held the text; None for "text" or "sentences".
      rows: how many rows the source has.
      files: fingerprint of the files that it reads; None if it names none, or in older folders.
      shard_rows: rows that a shard was made of.
      version: the llama_jax that wrote it.
      shards: the files, in the order of the source.
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

    @property
    def count(self) -> int:
        """How many shards there are in the end."""
        return -(-self.rows // self.shard_rows)

    def range(self, number: int) -> range:
        """The rows of the source that a shard is made of."""
        begin = number * self.shard_rows
        return range(begin, min(begin + self.shard_rows, self.rows))

    def to_json(self) -> str:
        """The file, with totals for people and a digest of the rest."""
        totals = {"documents": self.documents, "tokens": self.tokens, "empty": self.empty}
        value = {"format": FORMAT, **totals, **dataclasses.asdict(self)}
        return json.dumps({**value, "digest": _digest(value)}, indent=1) + "\n"

    @classmethod
    def read(cls, folder: Path, name: str = MANIFEST) -> "Manifest":
        """Reads the manifest of a folder.

        Raises:
          UserError: there is none, or it cannot be read, or is one of something else.
          FormatError: it is damaged: torn, changed since it was written, or contradicts itself.
        """
        path = folder / name
        if not path.is_file():
            raise UserError(
                f"{str(folder)!r} holds no {MANIFEST}; "
                + (
                    "it was not prepared to the end: give the same `llama-jax prepare` again"
                    if begun(folder)
                    else "expected a folder that `llama-jax prepare SOURCE OUT` made"
                )
            )
        try:
            value = _object(path.read_bytes())
            if (kind := value.get("format")) != FORMAT:
                raise UserError(
                    f"{str(path)!r} is not a manifest of prepared data (its format is {kind!r}, "
                    f"expected {FORMAT!r}); give another folder, or prepare the data into one"
                )
            return cls._of(value, whole=name == MANIFEST)
        except OSError as error:
            reason = error.strerror or type(error).__name__
            raise UserError(
                f"{str(path)!r} cannot be read ({reason}); copy the folder again"
            ) from None
        except _Contradiction as error:
            raise FormatError(
                f"{str(path)!r} is damaged ({error}); give the same `llama-jax prepare` again, "
                "which makes anew what does not agree, or copy the folder again"
            ) from None

    @classmethod
    def _of(cls, value: dict[str, Any], whole: bool) -> "Manifest":
        """Checks types first, then what one field says of another."""
        seal = value.pop("digest", None)  # older folders have none, and perhaps no `files`
        sealed = _digest(value)
        value = {"files": None} | value
        if not isinstance(value.get("shards"), list):
            raise _Contradiction("it lists no shards")
        shards = tuple(Shard(**_fields(Shard, shard)) for shard in value["shards"])
        found = cls(**_fields(cls, value | {"shards": shards}))
        found._check(whole)
        for name in ("documents", "tokens", "empty"):
            if value.get(name) != (total := getattr(found, name)):
                raise _Contradiction(f"{name} is {value.get(name)!r}, the shards have {total}")
        if seal not in (None, sealed):
            raise _Contradiction("its content has changed since it was written")
        return found

    def _check(self, whole: bool) -> None:
        if min(self.vocab, self.rows, self.shard_rows) < 1 or self.dtype != dtype_of(self.vocab):
            raise _Contradiction(
                f"vocab {self.vocab}, dtype {self.dtype!r}, rows {self.rows}, shard_rows "
                f"{self.shard_rows}"
            )
        numbers = [_number(shard.file) for shard in self.shards]
        if numbers != sorted({n for n in numbers if n < self.count}):
            raise _Contradiction(
                "it names a shard twice, in disorder or of rows that are not there"
            )
        if whole and len(numbers) != self.count:
            raise _Contradiction(f"it names {len(numbers)} shards of {self.count}")
        for number, shard in zip(numbers, self.shards, strict=True):
            count = len(self.range(number))
            low = min(shard.documents, shard.empty, shard.bytes)
            if low < 0 or shard.documents + shard.empty != count:
                raise _Contradiction(
                    f"{shard.file} has {shard.documents} documents and {shard.empty} empty rows, "
                    f"of {count}"
                )
            if shard.tokens < 2 * shard.documents:
                raise _Contradiction(
                    f"{shard.file} has {shard.tokens} tokens in {shard.documents} documents"
                )

    def check(self, tokenizer: Vocabulary, where: str) -> None:
        """Checks that `tokenizer` is the one that made the ids.

        Raises:
          UserError: it is another; both digests are named.
        """
        from llama_jax.text.digest import digest

        mine = digest(tokenizer)
        if mine != self.tokenizer:
            raise UserError(
                f"{where} was prepared with the tokenizer {self.tokenizer[:SHOWN]} "
                f"({self.vocab} ids), the run has {mine[:SHOWN]} ({tokenizer.vocab} ids); take "
                f"--set tokenizer={where.strip(chr(39))}, or prepare the data with the run's"
            )


def shard_name(number: int) -> str:
    """What a shard is called."""
    return f"tokens-{number:05}.array_record"


def begun(folder: Path) -> bool:
    """Whether `llama-jax prepare` has worked in a folder, however early it was stopped there."""
    if not folder.is_dir():
        return False
    names = {DRAFT.sub("", path.name) for path in folder.iterdir()}
    if BEGUN in names or any(map(SHARD.match, names)):  # also what a draft of a shard begins with
        return True
    return LOCK in names and names <= {LOCK, MANIFEST, *NAMES}


def dtype_of(vocab: int) -> str:
    """The smallest dtype that holds every id."""
    return "<u2" if vocab <= 1 << 16 else "<u4"


def check_size(folder: Path, shard: Shard) -> None:
    """Checks that a shard is there and has its size.

    Raises:
      UserError: it is not; the shard is named.
    """
    path = folder / shard.file
    size = path.stat().st_size if path.is_file() else None
    if size == shard.bytes:
        return
    what = "is missing" if size is None else "is empty" if size == 0 else "is torn"
    have = "" if not size else f" ({size:,} of {shard.bytes:,} bytes)"
    raise UserError(
        f"shard {str(path)!r} {what}{have}; give the same `llama-jax prepare` again, which makes "
        "damaged shards anew, or copy the folder again"
    )


def sha256(path: Path) -> str:
    """The digest of a file, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


class _Contradiction(Exception):
    """What in a manifest cannot be so."""


def _number(file: str) -> int:
    """The number in a shard's name: a plain one, which leads out of no folder."""
    found = SHARD.fullmatch(file)
    if not found or file != shard_name(number := int(found[1])):
        raise _Contradiction(f"it names {file!r:.60}, which is no shard's name")
    return number


def _digest(value: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def _object(data: bytes) -> dict[str, Any]:
    try:
        value = json.loads(data.decode())
    except (ValueError, RecursionError) as error:
        raise _Contradiction(f"it is no JSON: {str(error)[:100]}") from None
    if not isinstance(value, dict):
        raise _Contradiction("it is no JSON object")
    return value


def _fields(kind: type, value: Any) -> dict[str, Any]:
    """The fields of a dataclass out of JSON, each of the type that the class gives it."""
    if not isinstance(value, dict):
        raise _Contradiction(f"{value!r:.60} is no {kind.__name__.lower()}")
    fields = {}
    for name, hint in typing.get_type_hints(kind).items():
        origin = typing.get_origin(hint)
        wanted = hint if origin in (None, types.UnionType) else origin
        if name not in value or type(value[name]) is bool or not isinstance(value[name], wanted):
            given = f"{value[name]!r:.60}" if name in value else "missing"
            raise _Contradiction(f"{name} is {given}")
        fields[name] = value[name]
    return fields
