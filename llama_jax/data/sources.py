"""Where examples come from: TFDS data sets and local files, all opened as a sequence of dicts.

A source is a small frozen value that a run can store; `open()` gives `Rows`, with random access.
Values are Python and NumPy: text is `str`, images are bytes, a path or an array (see `images.py`).
"""

import dataclasses
import functools
import json
import os
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from llama_jax.data.builders.prepare import OURS, prepared
from llama_jax.errors import UserError, nearest

PICTURES = (".png", ".jpg", ".jpeg", ".webp", ".gif")
SUBPACKAGES = ("text", "translate", "summarization", "video")  # not registered on plain import


class Source(Protocol):
    """Any frozen dataclass with `open()`."""

    def open(self) -> "Rows":
        """Returns the examples."""
        ...


class Rows(Sequence):
    """A random-access sequence of examples.

    Attributes:
        name: What to call it in a message.
        memo: What was worked out from it (decoded images, tokens), by whoever worked it out.
    """

    def __init__(self, name: str, count: int, read: Callable[[int], dict[str, Any]]):
        """Wraps `read`, which must be a pure function of the index."""
        self.name, self.count, self.read = name, count, read
        self.memo: dict[Any, Any] = {}
        if count == 0:
            raise UserError(f"{name} holds no example; expected at least one.")

    def __len__(self) -> int:
        """The number of examples."""
        return self.count

    def __getitem__(self, index: Any) -> Any:
        """Returns example `index`, a dict."""
        if not -self.count <= index < self.count:
            raise IndexError(index)
        return self.read(int(index) % self.count)


@dataclasses.dataclass(frozen=True)
class Tfds:
    """A TFDS data set: "easy_vqa" and "kjv" are ours, any other name is looked up in TFDS.

    Attributes:
        name: As TFDS writes it: "glue/sst2", "wmt14_translate/de-en", ...
        split: "train", "test[:10%]", ...
        version: Refuse another version; None takes the newest.
        data_dir: Where prepared files live; None for $LLAMA_JAX_DATA or the default.
    """

    name: str
    split: str = "train"
    version: str | None = None
    data_dir: str | None = None

    def open(self) -> Rows:
        """Prepares the data set if that was not done before, and opens it.

        Raises:
            UserError: If the name, split or version is unknown, or it cannot be prepared.
        """
        return _open_tfds(self, os.environ.get("LLAMA_JAX_DATA"))


@dataclasses.dataclass(frozen=True)
class JsonLines:
    """A file with one JSON object a line; a text under `image` is a path beside the file."""

    path: str
    image: str = "image"

    def open(self) -> Rows:
        """Indexes the lines.

        Raises:
            UserError: If the file is missing; reading a row, if that line is no JSON object.
        """
        path = _existing(self.path)
        data = path.read_bytes()
        lines = [(n, line) for n, line in enumerate(data.splitlines(), 1) if line.strip()]

        def read(index: int) -> dict[str, Any]:
            number, line = lines[index]
            try:
                row = json.loads(line)
            except ValueError:
                row = None
            if not isinstance(row, dict):
                raise UserError(
                    f"{self.path!r} line {number} is not a JSON object; "
                    'expected something like {"text": "..."} on each line.'
                )
            if isinstance(row.get(self.image), str):
                row[self.image] = path.parent / row[self.image]
            return row

        return Rows(repr(self.path), len(lines), read)


@dataclasses.dataclass(frozen=True)
class PlainText:
    """A text file (or a folder of .txt files): documents are separated by blank lines."""

    path: str

    def open(self) -> Rows:
        """Reads and splits the text.

        Raises:
            UserError: If the file is missing, is not UTF-8, or holds no text.
        """
        path = _existing(self.path, folder=True)
        files = sorted(path.glob("*.txt")) if path.is_dir() else [path]
        documents = []
        for file in files:
            try:
                text = file.read_text(encoding="utf-8")
            except UnicodeDecodeError as error:
                raise UserError(
                    f"{str(file)!r} is not UTF-8 text (byte {error.start}); expected plain text; "
                    "try converting it with iconv."
                ) from None
            parts = [part.strip() for part in re.split(r"\n\s*\n", text) if part.strip()]
            documents += [(f"{file.name}:{n}", part) for n, part in enumerate(parts)]

        def read(index: int) -> dict[str, Any]:
            name, text = documents[index]
            return {"document": name, "text": text, "sentences": split_sentences(text)}

        return Rows(repr(self.path), len(documents), read)


@dataclasses.dataclass(frozen=True)
class ImageFolder:
    """A folder of pictures: subfolders are classes, `captions.jsonl` may say more.

    Each line of captions.jsonl is {"file": "cats/1.png", "caption": "..."}, and further fields
    are passed on. Without a caption the class name stands in.
    """

    path: str

    def open(self) -> Rows:
        """Lists the pictures.

        Raises:
            UserError: If there is none, or captions.jsonl names a file that is not there.
        """
        root = _existing(self.path, folder=True)
        files = sorted(p for p in root.rglob("*") if p.suffix.lower() in PICTURES)
        names = [file.relative_to(root).as_posix() for file in files]
        if not files:
            raise UserError(
                f"folder {self.path!r} holds no picture; expected files ending in "
                f"{', '.join(PICTURES)}, in one subfolder a class."
            )
        classes = sorted({name.split("/")[0] for name in names if "/" in name})
        extra: dict[str, dict[str, Any]] = {}
        if (root / "captions.jsonl").exists():
            for row in JsonLines(str(root / "captions.jsonl")).open():
                name = str(row.get("file"))
                if name not in set(names):
                    raise UserError(
                        f"captions.jsonl names {name!r}, which is not in {self.path!r}."
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

        return Rows(repr(self.path), len(files), read)


def get(row: dict[str, Any], field: str, where: str = "the source") -> Any:
    """Returns a field of an example; dots go into nested dicts ("translation.en").

    Raises:
        UserError: If it is not there, with the nearest name.
    """
    value: Any = row
    for key in field.split("."):
        if not isinstance(value, dict) or key not in value:
            there = list(value) if isinstance(value, dict) else []
            raise UserError(
                f"{where} has no field {field!r}; it has {', '.join(map(str, there)) or 'none'}."
                + nearest(key, map(str, there))
            )
        value = value[key]
    return value


def sentences(row: dict[str, Any], field: str | None = None, where: str = "the source") -> list:
    """Returns an example as a list of sentences: `field`, else "sentences", else "text"."""
    name = field or ("sentences" if "sentences" in row else "text")
    value = get(row, name, where)
    return split_sentences(value) if isinstance(value, str) else [str(s) for s in value]


def texts(source: Source) -> Iterator[str]:
    """Yields every text in a source, for training a tokenizer (names and labels included)."""
    for row in source.open():
        yield from _strings(row)


def split_sentences(text: str) -> list[str]:
    """Splits at . ! ? and their like, unless after an abbreviation or before a small letter."""
    pieces, start = [], 0
    text = " ".join(text.split())
    for end in END.finditer(text):
        head = text[start : end.end()].strip()
        if ABBREVIATION.search(head) or text[end.end() : end.end() + 1].islower():
            continue
        pieces.append(head)
        start = end.end()
    return [piece for piece in [*pieces, text[start:].strip()] if piece]


END = re.compile(r"[.!?…][\"'”’)\]]*\s+|[。！？][”」]?")
ABBREVIATION = re.compile(
    r"(?:\b(?:Mrs?|Ms|Dr|Prof|St|vs|etc|Jr|Sr|No|Fig|cf|[A-Z])|\b[A-Za-z]\.[A-Za-z])\.$"
)


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for item in value.values():
            yield from _strings(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _strings(item)


@functools.lru_cache(maxsize=16)  # prepared data does not change under a process
def _open_tfds(source: Tfds, env: str | None) -> Rows:
    builder = _ours(source) if source.name in OURS else _theirs(source, env)
    import tensorflow_datasets as tfds

    version = str(builder.version)
    if source.version not in (None, version):
        raise UserError(f"{source.name} {source.version} was asked for; {version} is there.")
    skip = {
        name: tfds.decode.SkipDecoding()  # bytes, which `images.decode` opens within its limits
        for name, feature in builder.info.features.items()
        if isinstance(feature, tfds.features.Image)
    }
    splits = list(builder.info.splits or ())
    if re.split(r"[\[+]", source.split)[0] not in [*splits, "all"]:
        raise UserError(
            f"{source.name} has no split {source.split!r}; it has {', '.join(splits)}."
            + nearest(source.split, splits)
        )
    try:
        data = builder.as_data_source(split=source.split, decoders=skip or None)
    except ValueError as error:
        raise UserError(f"{source.name}, split {source.split!r}: {_first_line(error)}") from None
    return Rows(f"{source.name}:{source.split}", len(data), lambda i: _native(data[i]))


def _ours(source: Tfds) -> Any:
    return prepared(source.name, source.data_dir)


def _theirs(source: Tfds, env: str | None) -> Any:
    """Looks a name up in TFDS, in its sub-packages too, and prepares it."""
    import importlib

    import tensorflow_datasets as tfds

    name = source.name if source.version is None else f"{source.name}:{source.version}"
    options: Any = {"data_dir": source.data_dir or env, "file_format": "array_record"}
    for sub in (None, *SUBPACKAGES):
        if sub:
            importlib.import_module(f"tensorflow_datasets.{sub}")
        try:
            builder = tfds.builder(name, **options)
            break
        except tfds.core.DatasetNotFoundError:
            continue
        except ValueError as error:
            base, _, config = source.name.partition("/")
            configs = list(tfds.builder_cls(base).builder_configs)
            reason = _first_line(error).rpartition('": ')[2].partition(" Here are")[0]
            raise UserError(f"TFDS data set {name!r}: {reason}{nearest(config, configs)}") from None
    else:
        names = [*OURS, *tfds.list_builders(with_community_datasets=False)]
        raise UserError(
            f"no data set is called {source.name!r}; expected easy_vqa, kjv or a name of TFDS."
            + nearest(source.name, names)
        )
    try:
        builder.download_and_prepare()
    except Exception as error:
        raise UserError(
            f"TFDS data set {name!r} could not be prepared ({type(error).__name__}: "
            f"{_first_line(error)}); try preparing it on a machine with a network and copy its "
            "folder into LLAMA_JAX_DATA."
        ) from None
    return builder


def _native(value: Any) -> Any:
    """Turns bytes of text into str, all through a TFDS example; pictures stay bytes."""
    if isinstance(value, dict):
        return {key: _native(item) for key, item in value.items()}
    if isinstance(value, bytes):
        return value if value.startswith(MAGIC) else value.decode("utf-8", "replace")
    if isinstance(value, list | tuple):
        return [_native(item) for item in value]
    if isinstance(value, np.ndarray) and value.dtype == object:
        return [_native(item) for item in value.tolist()]
    return value.item() if isinstance(value, np.generic) else value


MAGIC = (b"\x89PNG", b"\xff\xd8\xff", b"RIFF", b"GIF8")  # how the files of pictures begin


def _existing(path: str, folder: bool = False) -> Path:
    found = Path(path).expanduser()
    if not found.exists() or (found.is_dir() and not folder):
        around = [p.name for p in found.parent.glob("*")] if found.parent.is_dir() else []
        what = "file or folder" if folder else "file"
        raise UserError(f"no {what} at {path!r}.{nearest(found.name, around)}")
    return found


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0][:200]
