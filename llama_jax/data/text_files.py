"""Files found by pattern, and lines and documents found in them without holding the text.

What is kept of a file is where its pieces begin and end (16 bytes each). A compressed file has no
random access: it is held whole, decompressed, and only the last few of them are.
"""

import codecs
import functools
import hashlib
import mmap
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from llama_jax.errors import UserError, nearest

COMPRESSED = {".gz": "gzip", ".zst": "zstd", ".bz2": "bz2"}
WILD = re.compile(r"[*?\[]")
CHUNK = 1 << 24  # bytes looked at in one go
BLANK = 16  # a line of so few bytes may be blank
PIECE, PIECES = 1 << 16, 256  # bytes; of each file that a fingerprint takes


def suffix(path: Path) -> str:
    """What a file is by its name, whether compressed or not: ".jsonl" of "a.jsonl.gz"."""
    return Path(path.stem).suffix if path.suffix in COMPRESSED else path.suffix


def found(path: str, inside: str | None = None) -> list[Path]:
    """The files that a path stands for, sorted.

    Args:
      path: a file, a pattern with *, ** or ?, or a folder.
      inside: which files of a folder, as a pattern; None refuses folders.

    Raises:
      UserError: there is none.
    """
    here = Path(path).expanduser()
    if WILD.search(path) and not here.exists():
        root = Path(here.anchor or ".")
        files = sorted(p for p in root.glob(str(here.relative_to(root))) if p.is_file())
        if not files:
            raise UserError(f"no file matches {path!r}; is it the right folder?")
        return files
    here = existing(path, folder=inside is not None)
    return sorted(here.glob(inside)) if inside and here.is_dir() else [here]


def existing(path: str, folder: bool = False) -> Path:
    """The file, or folder if one is allowed, at a path.

    Raises:
      UserError: there is none, with the nearest name.
    """
    here = Path(path).expanduser()
    if not here.exists() or (here.is_dir() and not folder):
        around = [p.name for p in here.parent.glob("*")] if here.parent.is_dir() else []
        what = "file or folder" if folder else "file"
        raise UserError(f"no {what} at {path!r}{nearest(here.name, around)}")
    return here


def fingerprint(files: Sequence[Path]) -> str:
    """A digest of files, in hex, by which a change of one is noticed in little time.

    It takes the sizes, all of what is in files up to 16 MiB, and of a larger one pieces spread from
    its begin to its end. Names and times, which copying changes, are left out.
    """
    found = hashlib.sha256()
    for path in files:
        size = path.stat().st_size
        found.update(size.to_bytes(8, "little"))
        begins = range(0, size, PIECE)
        if len(begins) > PIECES:
            begins = np.linspace(0, size - PIECE, PIECES, dtype=np.int64).tolist()
        with path.open("rb") as file:
            for begin in begins:
                file.seek(begin)
                found.update(file.read(PIECE))
    return found.hexdigest()


def opened(path: Path) -> Any:
    """The bytes of a file as something to slice: mapped, or decompressed.

    Raises:
      UserError: it is compressed and damaged.
    """
    if path.suffix in COMPRESSED:
        return _decompressed(path, path.stat().st_mtime_ns)
    with path.open("rb") as file:
        if path.stat().st_size == 0:
            return b""
        return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)


@functools.lru_cache(maxsize=2)
def _decompressed(path: Path, changed: int) -> bytes:
    import pyarrow

    del changed  # a part of the key
    try:
        with pyarrow.input_stream(str(path), compression=COMPRESSED[path.suffix]) as stream:
            return stream.read()
    except (OSError, pyarrow.ArrowException) as error:
        reason = str(error).partition("\n")[0][:200]
        raise UserError(
            f"{str(path)!r} cannot be decompressed ({reason}); was it copied whole?"
        ) from None


class Pieces(Sequence):
    """The lines or documents of a file, as bytes."""

    def __init__(self, path: Path, cut: Callable[[Any], np.ndarray]):
        """Finds where pieces are: `cut` gives [n, 2] from the bytes, begin and end."""
        data = opened(path)
        self.path, self.at = path, cut(data)
        # A mapping costs nothing; of the compressed files only the last few stay.
        self.data = None if path.suffix in COMPRESSED else data

    def __len__(self) -> int:
        """How many there are."""
        return len(self.at)

    def __getitem__(self, index: Any) -> bytes:
        """One."""
        begin, end = self.at[index].tolist()
        return bytes((opened(self.path) if self.data is None else self.data)[begin:end])

    def line(self, index: int) -> int:
        """The number of the line where a piece begins, from 1."""
        data = opened(self.path) if self.data is None else self.data
        return bytes(data[: int(self.at[index][0])]).count(b"\n") + 1


def lines(data: Any) -> np.ndarray:
    """Begin and end of every line that is not blank, [n, 2]."""
    ends = [np.zeros(0, np.int64)]
    for at in range(0, len(data), CHUNK):
        part = np.frombuffer(data[at : at + CHUNK], np.uint8)
        ends.append(np.flatnonzero(part == ord("\n")) + at)
    end = np.concatenate([*ends, [len(data)]])
    begin = np.concatenate([[0], end[:-1] + 1])
    keep = end > begin
    for i in np.flatnonzero(keep & (end - begin < BLANK)):
        keep[i] = bool(data[int(begin[i]) : int(end[i])].strip())
    return np.stack([begin[keep], end[keep]], axis=1)


def paragraphs(data: Any) -> np.ndarray:
    """Begin and end of every run of text between blank lines, [n, 2]."""
    bounds, begin = [], 0
    for gap in (*re.finditer(rb"\n\s*\n", data), None):
        end = len(data) if gap is None else gap.start()
        if bytes(data[begin : min(end, begin + BLANK)]).strip() or bytes(data[begin:end]).strip():
            bounds.append((begin, end))
        begin = end if gap is None else gap.end()
    return np.array(bounds, np.int64).reshape(-1, 2)


def check_utf8(path: Path) -> None:
    """Checks that a file is text.

    Raises:
      UserError: it is not UTF-8, with the byte where that shows.
    """
    data, decoder, at = opened(path), codecs.getincrementaldecoder("utf-8")(), 0
    for at in range(0, len(data), CHUNK):
        held = len(decoder.getstate()[0])
        try:
            decoder.decode(bytes(data[at : at + CHUNK]), final=at + CHUNK >= len(data))
        except UnicodeDecodeError as error:
            raise UserError(
                f"{str(path)!r} is not UTF-8 text (byte {at - held + error.start}); expected plain "
                "text; try converting it with iconv"
            ) from None


def joined(parts: Sequence[Sequence]) -> tuple[int, Callable[[int], tuple[Any, int]]]:
    """How many items are in all parts, and index -> (part, index within it)."""
    ends = np.cumsum([len(part) for part in parts], dtype=np.int64)

    def locate(index: int) -> tuple[Any, int]:
        which = int(np.searchsorted(ends, index, side="right"))
        return parts[which], index - int(ends[which - 1] if which else 0)

    return int(ends[-1]) if len(ends) else 0, locate
