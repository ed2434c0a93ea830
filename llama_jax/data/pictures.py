"""What is kept of a source: its texts, and its pictures once they are decoded."""

from typing import Any

import numpy as np

from llama_jax.data import images
from llama_jax.data.fields import Fields
from llama_jax.data.sources import Rows, get

CACHE_BYTES = 512 * 2**20  # decoded pictures of one source, size and field are kept below this
LIGHT_ROWS = 200_000  # rows of one source whose texts are kept in memory,
LIGHT_BYTES = 2048  # and pictures that are not larger than this


class Pictures:
    """Decoded, resized pictures or clips of a source, kept in memory if they fit.

    The limit is `CACHE_BYTES` for a source, size and field; larger ones are decoded every time.
    """

    def __init__(self, rows: Rows, field: str, size: int, frames: int = 0):
        """Decodes nothing yet."""
        self.rows, self.field, self.size, self.frames = rows, field, size, frames
        shape = (len(rows), *([frames] if frames else []), size, size, 3)
        keep = np.prod(shape, dtype=np.int64) <= CACHE_BYTES
        self.kept = np.empty(shape, np.uint8) if keep else None
        self.ready = np.zeros(len(rows), bool)

    @classmethod
    def of(cls, rows: Rows, field: str, size: int, frames: int = 0) -> "Pictures":
        """The one that tasks over the same rows share."""
        key = ("pictures", field, size, frames)
        if key not in rows.memo:
            rows.memo[key] = cls(rows, field, size, frames)
        return rows.memo[key]

    def __call__(self, indices: np.ndarray) -> np.ndarray:
        """The pixels, uint8 [I, Y, X, 3], or [I, T, Y, X, 3] for clips."""
        if self.kept is None:
            return np.stack([self._decode(i) for i in indices])
        for i in indices[~self.ready[indices]]:
            self.kept[i] = self._decode(i)
            self.ready[i] = True
        return self.kept[indices]

    def _decode(self, index: int) -> np.ndarray:
        row = light(self.rows, int(index))
        if self.field not in row:
            row = self.rows[int(index)]
        value = get(row, self.field, self.rows.name)
        if self.frames:
            return images.frames(value, self.frames, self.size)
        return images.decode(value, self.size)


def picture_fields(count: int, size: int, frames: int = 0) -> Fields:
    """The field that `Pictures` fills: `image`, or `video` if there are frames."""
    shape = (count, *([frames] if frames else []), size, size, 3)
    return {stream_name(frames): (shape, "uint8")}


def stream_name(frames: int) -> str:
    """The field that holds the pixels."""
    return "video" if frames else "image"


def light(rows: Rows, index: int) -> dict[str, Any]:
    """An example without large pictures, kept in memory once read."""
    known = rows.memo.setdefault("light", {})
    row = known.get(index)
    if row is None:
        row = {k: v for k, v in rows[index].items() if not _heavy(v)}
        if len(known) < LIGHT_ROWS:
            known[index] = row
    return row


def _heavy(value: Any) -> bool:
    return isinstance(value, np.ndarray) or (isinstance(value, bytes) and len(value) > LIGHT_BYTES)
