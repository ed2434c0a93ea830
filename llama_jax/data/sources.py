"""Where examples come from: TFDS data sets and local files, all opened as a sequence of dicts.

A source is a small frozen value that a run can store; `open()` gives `Rows`, with random access.
Values are Python and NumPy: text is `str`, images are bytes, a path or an array (see `images.py`).
"""

import dataclasses
import json
import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from llama_jax.data.builders.prepare import OURS
from llama_jax.data.manifest import MANIFEST, begun
from llama_jax.data.parquet import row_groups
from llama_jax.data.rows import Rows, Source, split_sentences
from llama_jax.data.shards import Mix, Prepared
from llama_jax.data.text_files import (
    Pieces,
    check_utf8,
    existing,
    found,
    joined,
    lines,
    paragraphs,
    suffix,
)
from llama_jax.data.tfds import Tfds
from llama_jax.errors import UserError, nearest

PICTURES = (".png", ".jpg", ".jpeg", ".webp", ".gif")
WEIGHED = re.compile(r"=[^/*?\[]*$")  # "a=3", also "a=x", but not "year=2024/x.txt" or "year=*"
__all__ = [
    "ImageFolder",
    "JsonLines",
    "Parquet",
    "PlainText",
    "Rows",
    "Source",
    "Tfds",
    "named",
    "texts",
]


@dataclasses.dataclass(frozen=True)
class JsonLines:
    """Files with one JSON object a line; a text under `image` is a path beside the file.

    Attributes:
      path: a file, or a pattern such as "c4/*.jsonl.gz"; .gz, .zst and .bz2 are opened too, and
        then held in memory one by one.
      image: the field that may name a picture.
    """

    path: str
    image: str = "image"

    def open(self) -> Rows:
        """Finds the lines.

        Raises:
          UserError: there is no such file; reading a row, if that line is no JSON object.
        """
        files = found(self.path)
        count, locate = joined([Pieces(file, lines) for file in files])

        def read(index: int) -> dict[str, Any]:
            part, at = locate(index)
            try:
                row = json.loads(part[at])
            except ValueError:
                row = None
            if not isinstance(row, dict):
                raise UserError(
                    f"{str(part.path)!r} line {part.line(at)} is not a JSON object; "
                    'expected something like {"text": "..."} on each line'
                )
            if isinstance(row.get(self.image), str):
                row[self.image] = part.path.parent / row[self.image]
            return row

        return Rows(repr(self.path), count, read, files)


@dataclasses.dataclass(frozen=True)
class Parquet:
    """Parquet files, as the Hugging Face hub keeps data sets in.

    Attributes:
      path: a file, or a pattern such as "fineweb/*.parquet".
      columns: names of the columns to read; all if empty.
    """

    path: str
    columns: tuple[str, ...] = ()

    def open(self) -> Rows:
        """Reads where row groups are.

        Raises:
          UserError: there is no such file or column, or it is no Parquet.
        """
        files = found(self.path)
        count, locate = joined([g for file in files for g in row_groups(file, self.columns)])

        def read(index: int) -> dict[str, Any]:
            group, at = locate(index)
            return group[at]

        return Rows(repr(self.path), count, read, files)


@dataclasses.dataclass(frozen=True)
class PlainText:
    """Text files; blank lines separate documents.

    Attributes:
      path: a file, a pattern such as "books/*.txt", or a folder of .txt files.
    """

    path: str

    def open(self) -> Rows:
        """Finds the documents.

        Raises:
          UserError: there is no such file, or it is not UTF-8, or holds no text.
        """
        files = found(self.path, "*.txt")
        for file in files:
            check_utf8(file)
        count, locate = joined([Pieces(file, paragraphs) for file in files])

        def read(index: int) -> dict[str, Any]:
            part, at = locate(index)
            text = part[at].decode("utf-8").strip()
            name = f"{part.path.name}:{at}"
            return {"document": name, "text": text, "sentences": split_sentences(text)}

        return Rows(repr(self.path), count, read, files)


@dataclasses.dataclass(frozen=True)
class ImageFolder:
    """A folder of pictures: subfolders are classes, `captions.jsonl` may say more.

    Each line of captions.jsonl is {"file": "cats/1.png", "caption": "..."}, and further fields
    are passed on. Without a caption the class name stands in.

    Attributes:
      path: the folder.
    """

    path: str

    def open(self) -> Rows:
        """Lists the pictures.

        Raises:
          UserError: there is none, or captions.jsonl names a file that is not there.
        """
        root = existing(self.path, folder=True)
        files = sorted(p for p in root.rglob("*") if p.suffix.lower() in PICTURES)
        names = [file.relative_to(root).as_posix() for file in files]
        if not files:
            raise UserError(
                f"folder {self.path!r} holds no picture; expected files ending in "
                f"{', '.join(PICTURES)}, in one subfolder a class"
            )
        classes = sorted({name.split("/")[0] for name in names if "/" in name})
        known, extra = set(names), {}
        captions = root / "captions.jsonl"
        if captions.exists():
            for row in JsonLines(str(captions)).open():
                name = str(row.get("file"))
                if name not in known:
                    raise UserError(
                        f"captions.jsonl names {name!r}, which is not in {self.path!r}"
                        + nearest(name, names)
                    )
                extra[name] = row

        def read(index: int) -> dict[str, Any]:
            name = names[index]
            group = name.split("/")[0] if "/" in name else ""
            row = {"caption": group.replace("_", " ")} if group else {}
            row |= extra.get(name, {}) | {"file": name, "image": files[index]}
            if group:
                row |= {"label": classes.index(group), "label_name": group}
            return row

        return Rows(repr(self.path), len(files), read, [captions] if captions.exists() else [])


def named(text: str) -> Source:
    """The source that a path, a pattern or a name stands for.

    A folder that `llama-jax prepare` made or began is `Prepared`; files that end in .jsonl are
    `JsonLines`, in .parquet `Parquet`, a folder with pictures is an `ImageFolder`, any other file
    or folder `PlainText`.
    What is not there and has weights, "a=3,b=1", is a `Mix` of prepared folders; what is no path is
    the name of a `Tfds` data set. The names of ours, "kjv" and "easy_vqa", are never taken for
    paths.

    Raises:
      UserError: a part of a mix is no folder with a weight.
    """
    if text in OURS:
        return Tfds(text)
    path = Path(text).expanduser()
    if (path / MANIFEST).exists() or begun(path):
        return Prepared(text)
    if suffix(path) == ".jsonl":
        return JsonLines(text)
    if suffix(path) == ".parquet":
        return Parquet(text)
    if path.is_dir() and any(file.suffix.lower() in PICTURES for file in path.rglob("*")):
        return ImageFolder(text)
    if path.exists() or suffix(path) in (".txt", ".md"):
        return PlainText(text)
    if any(map(WEIGHED.search, text.split(","))):
        return _mix(text)
    if text.startswith((".", "/", "~")):
        return PlainText(text)
    return Tfds(text)


def _mix(text: str) -> Mix:
    folders, weights = [], []
    for part in text.split(","):
        folder, _, weight = (piece.strip() for piece in part.rpartition("="))
        try:
            weights.append(float(weight))
        except ValueError:
            weights.append(math.nan)
        if not folder or not 0 < weights[-1] < math.inf:
            raise UserError(
                f"{part.strip()!r} in {text!r} is no folder with its weight, and nothing is there "
                "under this name; expected numbers above 0, e.g. prepared/a=3,prepared/b=0.5"
            )
        folders.append(Prepared(folder))
    return Mix(tuple(folders), tuple(weights))


def texts(source: Source) -> Iterator[str]:
    """Yields every text in a source, for training a tokenizer (names and labels included).

    Raises:
      UserError: it holds token ids instead.
    """
    if isinstance(source, Prepared | Mix):
        first = source.sources[0] if isinstance(source, Mix) else source
        raise UserError(
            f"{first.path!r} holds tokens and no text to train a tokenizer on; take the one that "
            f"made them: --set tokenizer={first.path}"
        )
    for row in source.open():
        yield from _strings(row)


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for item in value.values():
            yield from _strings(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _strings(item)
