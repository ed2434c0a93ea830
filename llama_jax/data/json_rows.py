"""JSON objects in files: one on each line, or the items of one array."""

import functools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from llama_jax.checked import checked
from llama_jax.data.file_bytes import Bytes, changed, opened, stamp
from llama_jax.data.rows import Rows
from llama_jax.data.text_files import BOM, Pieces, found, joined, lines
from llama_jax.errors import UserError

ENDINGS = (".jsonl", ".ndjson", ".json")
MOST = 1 << 30  # bytes of an array, which is held whole; lines are not
START = 1 << 16  # bytes at the begin of a file in which its first character must be


@checked
class JsonLines:
    """Files with one JSON object a line, or with one array of objects.

    Attributes:
      path: a file, a pattern such as "c4/*.json.gz", or a folder of files that end in .jsonl,
        .ndjson or .json; .gz, .zst and .bz2 are opened too, and then held in memory one by one, as
        arrays are.
      image: the field that may name a picture, as a path beside the file.
      video: the same of a video.
    """

    path: str
    image: str = "image"
    video: str = "video"

    def open(self) -> Rows:
        """Finds the objects.

        Raises:
          UserError: there is no such file, or an array is no JSON; reading a row, if that is no
            JSON object, or its file has changed.
        """
        files = found(self.path, ENDINGS)
        count, locate = joined([_objects(file) for file in files])

        def read(index: int) -> dict[str, Any]:
            part, at = locate(index)
            try:
                row = json.loads(part[at])
            except (ValueError, RecursionError):
                row = None
            if not isinstance(row, dict):
                raise UserError(
                    f"{str(part.path)!r} line {part.line(at)} is not a JSON object; "
                    'expected something like {"text": "..."} on each line, or an array of them'
                )
            for field in (self.image, self.video):
                if isinstance(row.get(field), str):
                    row[field] = part.path.parent / row[field]
            return row

        return Rows(repr(self.path), count, read, files)


class Items(Sequence):
    """The items of a file that holds one JSON array, as text; only the last few files are held."""

    def __init__(self, path: Path):
        """Finds where items are.

        Raises:
          UserError: it is no JSON, or larger than `MOST`.
        """
        self.path, self.stamp = path, stamp(path)
        text, self.at = self._text(), []
        decoder, place = json.JSONDecoder(), _skip(text, text.index("[") + 1)
        try:
            while text[place : place + 1] != "]":
                _, end = decoder.raw_decode(text, place)
                self.at.append((place, end))
                place = _skip(text, end)
                if text[place : place + 1] not in (",", "]"):
                    raise json.JSONDecodeError("Expecting ',' delimiter", text, place)
                place = _skip(text, place + (text[place] == ","))
            if _skip(text, place + 1) != len(text):
                raise json.JSONDecodeError("Extra data", text, place + 1)
        except json.JSONDecodeError as error:
            raise UserError(
                f"{str(path)!r} begins as a JSON array and is none from line {error.lineno} on "
                f"({error.msg}); was it copied whole?"
            ) from None
        except RecursionError:
            raise UserError(f"{str(path)!r} is nested too deeply to be read as JSON") from None

    def __len__(self) -> int:
        """How many there are."""
        return len(self.at)

    def __getitem__(self, index: Any) -> str:
        """One.

        Raises:
          UserError: the file has changed since it was opened.
        """
        begin, end = self.at[index]
        return self._text()[begin:end]

    def line(self, index: int) -> int:
        """The number of the line where an item begins, from 1."""
        return self._text().count("\n", 0, self.at[index][0]) + 1

    def _text(self) -> str:
        if stamp(self.path) != self.stamp:
            raise changed(self.path)
        return _whole(self.path, self.stamp)


def _objects(path: Path) -> Pieces | Items:
    return Items(path) if _first(opened(path)) == b"[" else Pieces(path, lines)


def _first(data: Bytes) -> bytes:
    """The first character that is no blank."""
    return data[:START].removeprefix(BOM).lstrip()[:1]


def _skip(text: str, place: int) -> int:
    """The next place, from `place` on, that holds no blank."""
    while text[place : place + 1] in (" ", "\t", "\n", "\r"):
        place += 1
    return place


@functools.lru_cache(maxsize=2)
def _whole(path: Path, stamp: tuple[int, int]) -> str:
    del stamp  # a part of the key
    data = opened(path)
    if len(data) > MOST:
        raise UserError(
            f"{str(path)!r} is one JSON array of {len(data) >> 20:,} MB and would have to be held "
            f"whole; expected at most {MOST >> 20:,} MB; try one object on each line: "
            "jq -c '.[]' FILE > FILE.jsonl"
        )
    try:
        return data[:].decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{str(path)!r} is not UTF-8 text (byte {error.start})") from None
