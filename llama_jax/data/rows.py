"""What a source opens as, rows of examples, and what is read out of a row."""

import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from llama_jax.errors import UserError, nearest


class Source(Protocol):
    """Any frozen dataclass with `open()`."""

    def open(self) -> "Rows":
        """The examples."""
        ...


class Rows(Sequence):
    """A random-access sequence of examples.

    Attributes:
      name: what to call it in a message.
      files: the files that are read and may change; see `text_files.fingerprint`.
      memo: what was worked out from it (decoded images, tokens), by whoever worked it out.
      notes: lines that whoever opened it should see: what was left out, and why.
    """

    def __init__(
        self,
        name: str,
        count: int,
        read: Callable[[int], dict[str, Any]],
        files: Sequence[Path] = (),
    ):
        """Wraps `read`, which must be a pure function of the index."""
        self.name, self.total, self.read, self.files = name, count, read, files
        self.memo: dict[Any, Any] = {}
        self.notes: list[str] = []
        if count == 0:
            raise UserError(f"{name} holds no example; expected at least one")

    def __len__(self) -> int:
        """The number of examples."""
        return self.total

    def __getitem__(self, index: Any) -> Any:
        """Example `index`, a dict."""
        if not -self.total <= index < self.total:
            raise IndexError(index)
        return self.read(int(index) % self.total)


def get(row: dict[str, Any], field: str, where: str = "the source") -> Any:
    """A field of an example; dots go into nested dicts ("translation.en").

    Raises:
      UserError: it is not there, with the nearest name.
    """
    value: Any = row
    for key in field.split("."):
        if not isinstance(value, dict) or key not in value:
            there = list(value) if isinstance(value, dict) else []
            raise UserError(
                f"{where} has no field {field!r}; it has {', '.join(map(str, there)) or 'none'}"
                + nearest(key, map(str, there))
            )
        value = value[key]
    return value


def sentences(row: dict[str, Any], field: str | None = None, where: str = "the source") -> list:
    """An example as a list of sentences: `field`, else "sentences", else "text".

    Raises:
      UserError: there is no such field, or it holds no text.
    """
    value = _read(row, field, where, ("sentences", "text"))
    return split_sentences(value) if isinstance(value, str) else value


def text_of(row: dict[str, Any], field: str | None = None, where: str = "the source") -> str:
    """An example as one text: `field`, else "text", else "sentences" joined by blanks.

    Raises:
      UserError: there is no such field, or it holds no text; an empty one is returned.
    """
    value = _read(row, field, where, ("text", "sentences"))
    return value if isinstance(value, str) else " ".join(value)


def as_text(value: Any, where: str = "the source") -> str:
    """A value as text: numbers as JSON writes them; what is missing, a gap in a table, is "".

    Raises:
      UserError: it is a list or holds fields.
    """
    if isinstance(value, str):
        return value
    if value is None:
        return ""
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, bool | int | float):
        return json.dumps(value)
    raise UserError(
        f"{where} holds {value!r:.60} where a text was expected; is it another field that has it?"
    )


def texts_of(value: Any, where: str = "the source") -> list[str]:
    """A value as texts: a list of them, or one alone; see `as_text`."""
    if isinstance(value, list | tuple):
        return [as_text(one, where) for one in value]
    return [as_text(value, where)]


def _read(
    row: dict[str, Any], field: str | None, where: str, names: tuple[str, str]
) -> str | list[str]:
    """What is in `field`, else in the first of `names` that is there."""
    name = field or next((name for name in names if name in row), None)
    if name is None:
        raise UserError(
            f"{where} has no field 'text' and no 'sentences'; it has "
            f"{', '.join(map(str, row)) or 'none'}; "
            "say which to read: --field of `llama-jax prepare`, `field` of a task"
        )
    value = get(row, name, where)
    if value is None:  # where a table has a gap
        return ""
    if isinstance(value, str):
        return value
    if isinstance(value, list | tuple) and all(isinstance(s, str | None) for s in value):
        return [s for s in value if s is not None]
    raise UserError(
        f"{where} holds {value!r:.60} in the field {name!r}; expected a text or a list of "
        "sentences; is it another field that has them?"
    )


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
