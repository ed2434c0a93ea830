"""Where examples come from: TFDS data sets and local files, all opened as a sequence of dicts.

A source is a small frozen value that a run can store; `open()` gives `Rows`, with random access.
Values are Python and NumPy: text is `str`, images are bytes, a path or an array (see `images.py`).
"""

import math
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from llama_jax.checked import checked, checked_call
from llama_jax.data.builders.prepare import OURS
from llama_jax.data.image_folder import ImageFolder, is_picture, left_out
from llama_jax.data.json_rows import ENDINGS as JSON
from llama_jax.data.json_rows import JsonLines
from llama_jax.data.manifest import MANIFEST, begun
from llama_jax.data.parquet import row_groups
from llama_jax.data.rows import Rows, Source, split_sentences
from llama_jax.data.shards import Mix, Prepared
from llama_jax.data.text_files import (
    Pieces,
    check_utf8,
    found,
    joined,
    paragraphs,
    suffix,
    visible,
)
from llama_jax.data.tfds import Tfds
from llama_jax.data.union import Union
from llama_jax.errors import UserError
from llama_jax.files import at_home

PARQUET = (".parquet",)
TEXT = (".txt", ".md")
# What would be read as plain text and is none: a model would learn commas or bytes.
TABLES = (".csv", ".tsv", ".arrow", ".feather", ".xlsx", ".tfrecord")
ARCHIVES = (".zip", ".tar", ".tgz", ".7z", ".rar", ".xz")
PAGES = (".pdf", ".docx", ".odt", ".epub")
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


@checked
class Parquet:
    """Parquet files, as the Hugging Face hub keeps data sets in.

    Attributes:
      path: a file, a pattern such as "fineweb/*.parquet", or a folder of .parquet files.
      columns: names of the columns to read; all if empty.
    """

    path: str
    columns: tuple[str, ...] = ()

    def open(self) -> Rows:
        """Reads where row groups are.

        Raises:
          UserError: there is no such file or column, or it is no Parquet.
        """
        files = found(self.path, PARQUET)
        count, locate = joined([g for file in files for g in row_groups(file, self.columns)])

        def read(index: int) -> dict[str, Any]:
            group, at = locate(index)
            return group[at]

        return Rows(repr(self.path), count, read, files)


@checked
class PlainText:
    """Text files; blank lines separate documents.

    Attributes:
      path: a file, a pattern such as "books/*.txt", or a folder; of a folder, and the folders in
        it, .txt and .md files are read, compressed or not, and what else is there is counted in
        what the rows note.
    """

    path: str

    def open(self) -> Rows:
        """Finds the documents.

        Raises:
          UserError: there is no such file, or it is not UTF-8, or holds no text; reading a row, if
            its file has changed.
        """
        files = found(self.path, TEXT)
        for file in files:
            check_utf8(file)
        count, locate = joined([Pieces(file, paragraphs) for file in files])
        root = at_home(self.path)
        folder = root.is_dir()

        def read(index: int) -> dict[str, Any]:
            part, at = locate(index)
            text = part[at].decode("utf-8").strip()
            name = part.path.relative_to(root).as_posix() if folder else part.path.name
            return {"document": f"{name}:{at}", "text": text, "sentences": split_sentences(text)}

        rows = Rows(repr(self.path), count, read, files)
        others = [file for file in visible(root) if suffix(file) not in TEXT] if folder else []
        if others:
            rows.notes.append(f"{rows.name}: {left_out(others)}; text ends in {' or '.join(TEXT)}")
        return rows


def named(text: str) -> Source:
    """The source that a path, a pattern or a name stands for.

    A folder that `llama-jax prepare` made or began is `Prepared`; files that end in .jsonl, .ndjson
    or .json are `JsonLines`, in .parquet `Parquet`, any other file `PlainText`; a folder is what
    the files in it are.
    What is not there and has weights, "a=3,b=1", is a `Mix` of prepared folders; what is no path is
    the name of a `Tfds` data set. The names of ours, "kjv" and "easy_vqa", are never taken for
    paths.

    Raises:
      UserError: the files are of a kind that is not read, or a folder holds several kinds; a part
        of a mix is no folder with a weight.
    """
    if text in OURS:
        return Tfds(text)
    path = at_home(text)
    if (path / MANIFEST).exists() or begun(path):
        return Prepared(text)
    if path.is_dir():
        return _folder(text, visible(path))
    ending = suffix(path)
    if ending in JSON:
        return JsonLines(text)
    if ending in PARQUET:
        return Parquet(text)
    if (way := _way(ending)) is not None:
        raise UserError(f"{text!r} ends in {ending}, which is not read; {way}")
    if path.exists() or ending in TEXT:
        return PlainText(text)
    if any(map(WEIGHED.search, text.split(","))):
        return _mix(text)
    if text.startswith((".", "/", "~")):
        return PlainText(text)
    return Tfds(text)


def _folder(text: str, files: list[Path]) -> Source:
    """What a folder is by the files in it; text if there is nothing that tells."""
    if any(map(is_picture, files)):
        return ImageFolder(text)
    count = Counter(suffix(file) for file in files)
    kinds = {
        kind: sum(count[ending] for ending in endings)
        for kind, endings in ((PlainText, TEXT), (JsonLines, JSON), (Parquet, PARQUET))
    }
    there = [kind for kind, n in kinds.items() if n]
    if len(there) > 1:
        found = ", ".join(f"{n} {e}" for e, n in count.most_common() if e in TEXT + JSON + PARQUET)
        raise UserError(
            f"{text!r} holds files of several kinds ({found}); name one kind by a pattern, such as "
            f"'{text.rstrip('/')}/**/*{JSON[0]}'"
        )
    if not there and len(count) == 1 and (way := _way(next(iter(count)))) is not None:
        raise UserError(f"{text!r} holds {next(iter(count))} files, which are not read; {way}")
    return there[0](text) if there else PlainText(text)


def _way(ending: str) -> str | None:
    """How files become what is read, or None if they are taken as they are."""
    if ending in TABLES:
        return (
            'expected one {"text": "..."} on each line of a .jsonl file, or .parquet; of pandas, '
            "DataFrame.to_parquet writes that"
        )
    if ending in ARCHIVES:
        return "unpack it and name the folder"
    return "take the text out of it first, into .txt or .jsonl files" if ending in PAGES else None


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


@checked_call
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
    if isinstance(source, Union):  # each row once, whatever its weight
        for part in source.parts().values():
            yield from texts(part)
        return
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
