"""What is held out of training: a share of a source's documents, chosen by what is in them.

A document is held out if the hash of its text says so. So the choice is the same wherever the
document is read, by `train` and by `prepare`, alone or among others, now and when a run goes on; a
document that is there twice is held out twice; and a smaller share is part of a larger one.
"""

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import numpy as np

from llama_jax.checked import checked
from llama_jax.data.rows import Rows, Source, text_of
from llama_jax.data.shards import Tokenised
from llama_jax.errors import UserError

PICTURES = ("image", "video")  # of whose questions and captions none may be learned either
NAME = "held_out"  # of what is measured on it, and in prepared data of its folder
RANGE = 1 << 64


@checked
class Share:
    """A share of a source's own documents.

    Attributes:
      share: part of all documents, as far as chance allows; 0 holds nothing out.
    """

    share: float = 0.0

    def __post_init__(self) -> None:
        """Checks the value."""
        if not 0 <= self.share < 1:
            raise UserError(
                f"held_out={self.share}; expected a share from 0 to below 1, such as 0.05, or "
                "another source"
            )

    def named(self, text: str) -> "Share | Source":
        """What a text stands for in its place: a share, or the source of other text."""
        from llama_jax.data.sources import named

        try:
            return Share(float(text))
        except ValueError:
            return named(text)

    def has(self, text: str) -> bool:
        """Whether a document of this text is held out; how its blanks are written is all one."""
        return self._takes([" ".join(text.split())])

    def has_row(self, row: dict[str, Any], field: str | None = None) -> bool:
        """Whether a row is: by its text, else by its picture, else by all that it holds.

        Args:
          row: an example of a source.
          field: what holds the text; None for "text", else "sentences".
        """
        if field is not None or "text" in row or "sentences" in row:
            return self.has(text_of(row, field))
        seen = [row[name] for name in PICTURES if row.get(name) is not None]
        return self._takes(_content(seen or row))

    def _takes(self, parts: Any) -> bool:
        found = hashlib.blake2b(digest_size=8)
        for part in parts:
            found.update(part if isinstance(part, bytes) else part.encode("utf-8", "replace"))
        return int.from_bytes(found.digest(), "big") < self.share * RANGE


@checked
class Part:
    """What a source holds out, or all the rest of it. It is read through when it is opened.

    Attributes:
      source: the whole.
      share: how much is held out.
      side: which part this is.
      field: what holds the text of a row; None for "text", else "sentences".
    """

    source: Source
    share: Share
    side: Literal["training", "held out"] = "training"
    field: str | None = None

    def open(self) -> Rows:
        """Finds the rows of this part.

        Raises:
          UserError: there is none, or the source holds tokens and no text.
        """
        rows = self.source.open()
        if isinstance(rows, Tokenised):
            raise UserError(
                f"{rows.name} is prepared, and what is held out is taken from text: give "
                f"`llama-jax prepare` --held-out {self.share.share}, and to the run --set "
                f"data.*.held_out={rows.name.strip(chr(39))}/{NAME}"
            )
        wanted = self.side == "held out"
        at = [i for i in range(len(rows)) if self.share.has_row(rows[i], self.field) == wanted]
        if not at:
            raise UserError(
                f"held_out={self.share.share} leaves {rows.name} nothing "
                f"{'held out' if wanted else 'to train on'}, of {len(rows):,} documents; give "
                f"{'more' if wanted else 'less'}, or another source to measure on"
            )
        index = np.array(at)
        name = f"{rows.name} ({self.side})" if wanted else rows.name
        part = Rows(name, len(at), lambda i: rows[int(index[i])], rows.files)
        part.notes = [*rows.notes, f"{rows.name}: {self._said(len(at), len(rows))}"]
        return part

    def _said(self, here: int, of: int) -> str:
        held = here if self.side == "held out" else of - here
        return f"{held:,} of {of:,} documents are held out of training"


def _content(value: Any) -> Iterator[bytes | str]:
    """Yields what a value holds, in an order that does not depend on its fields' order."""
    if isinstance(value, dict):
        for key in sorted(value, key=str):
            yield f"\x00{key}\x00"
            yield from _content(value[key])
    elif isinstance(value, list | tuple):
        for item in value:
            yield "\x00"
            yield from _content(item)
    elif isinstance(value, np.ndarray):
        yield value.tobytes()
    elif isinstance(value, Path):  # another machine keeps it elsewhere
        yield value.name
    else:
        yield value if isinstance(value, bytes) else str(value)
