"""Files found by pattern, and lines and documents found in them without holding the text.

What is kept of a file is where its pieces begin and end (16 bytes each); see `file_bytes.py`.
"""

import codecs
import hashlib
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from llama_jax.data.file_bytes import COMPRESSED, Bytes, changed, chunks, opened, stamp
from llama_jax.errors import UserError, nearest
from llama_jax.files import at_home

WILD = re.compile(r"[*?\[]")
BLANK = np.isin(np.arange(256), np.frombuffer(b" \t\n\r\f\v", np.uint8))  # by byte
BOM = codecs.BOM_UTF8  # some editors begin a file with it
PIECE, PIECES = 1 << 16, 256  # bytes; of each file that a fingerprint takes


def suffix(path: Path) -> str:
    """What a file is by its name, compressed or not: ".jsonl" of "a.jsonl.gz" and of "A.JSONL"."""
    packed = path.suffix.lower() in COMPRESSED
    return (Path(path.stem).suffix if packed else path.suffix).lower()


def visible(folder: Path) -> list[Path]:
    """The files in a folder and the folders in it, sorted, without hidden ones.

    Hidden is what begins with a dot, and what macOS leaves beside the files of an archive.
    """
    return sorted(
        path
        for path in folder.rglob("*")
        if not any(p[0] == "." or p == "__MACOSX" for p in path.relative_to(folder).parts)
        and path.is_file()
    )


def found(path: str, endings: Sequence[str] = ()) -> list[Path]:
    """The files that a path stands for, sorted.

    Args:
      path: a file, a pattern with *, ** or ?, or a folder.
      endings: which files of a folder, and of the folders in it, as `suffix` gives them; without
        any, folders are refused.

    Raises:
      UserError: there is none.
    """
    here = at_home(path)
    if WILD.search(path) and not here.exists():
        root = Path(here.anchor or ".")
        files = sorted(p for p in root.glob(str(here.relative_to(root))) if p.is_file())
        if not files:
            raise UserError(f"no file matches {path!r}; is it the right folder?")
        return files
    here = existing(path, folder=bool(endings))
    if not here.is_dir():
        return [here]
    files = [file for file in visible(here) if suffix(file) in endings]
    if not files:
        raise UserError(f"folder {path!r} holds no file that ends in {', '.join(endings)}")
    return files


def existing(path: str, folder: bool = False) -> Path:
    """The file, or folder if one is allowed, at a path.

    Raises:
      UserError: there is none, with the nearest name.
    """
    here = at_home(path)
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


class Pieces(Sequence):
    """The lines or documents of a file, as bytes."""

    def __init__(self, path: Path, cut: Callable[[Bytes], np.ndarray]):
        """Finds where pieces are: `cut` gives [n, 2] from the bytes, begin and end."""
        self.path, self.stamp = path, stamp(path)
        data = opened(path)
        self.at = cut(data)
        # Of the compressed files only the last few stay.
        self._data = None if isinstance(data, bytes) else data

    def __len__(self) -> int:
        """How many there are."""
        return len(self.at)

    def __getitem__(self, index: Any) -> bytes:
        """One.

        Raises:
          UserError: the file has changed since it was opened.
        """
        begin, end = self.at[index].tolist()
        return self.data[begin:end]

    @property
    def data(self) -> Bytes:
        """All of the file."""
        if self._data is not None:
            return self._data
        if stamp(self.path) != self.stamp:
            raise changed(self.path)
        return opened(self.path)

    def line(self, index: int) -> int:
        """The number of the line where a piece begins, from 1."""
        data, begin = self.data, int(self.at[index][0])
        return sum(part[: max(0, begin - at)].count(b"\n") for at, part in chunks(data)) + 1


def lines(data: Bytes) -> np.ndarray:
    """Begin and end of every line that is not blank, [n, 2]."""
    at_L2, text_L = _lines(data)
    return at_L2[text_L]


def paragraphs(data: Bytes) -> np.ndarray:
    """Begin and end of every run of lines between blank ones, [n, 2]."""
    at_L2, text_L = _lines(data)
    edge = np.diff(text_L.astype(np.int8), prepend=0, append=0)
    return np.stack([at_L2[edge[:-1] == 1, 0], at_L2[edge[1:] == -1, 1]], axis=1)


def _lines(data: Bytes) -> tuple[np.ndarray, np.ndarray]:
    """Begin and end of every line, [L, 2], and whether there is anything in it, [L]."""
    ends, texts, begun = [], [], False
    for at, part in chunks(data):
        byte = np.frombuffer(part, np.uint8)
        end = np.flatnonzero(byte == ord("\n"))
        begin = np.append(0, end + 1)
        # Of the last line of a chunk there may be nothing here; what there is goes into the next.
        whole = begin[: len(begin) - (begin[-1] == len(byte))]
        text = np.logical_or.reduceat(~BLANK[byte], whole)
        text[0] |= begun
        begun = len(text) > len(end) and bool(text[-1])
        ends.append(end + at)
        texts.append(text[: len(end)])
    end = np.concatenate([*ends, [len(data)]]).astype(np.int64)
    begin = np.append(0, end[:-1] + 1)
    text = np.concatenate([*texts, [begun]]).astype(bool)
    if data[: len(BOM)] == BOM:
        begin[0] = len(BOM)
        text[0] = bool(data[len(BOM) : int(end[0])].strip())
    return np.stack([begin, end], axis=1), text


def check_utf8(path: Path) -> None:
    """Checks that a file is text.

    Raises:
      UserError: it is not UTF-8, with the byte where that shows.
    """
    data, decoder = opened(path), codecs.getincrementaldecoder("utf-8")()
    for at, part in chunks(data):
        held = len(decoder.getstate()[0])
        try:
            decoder.decode(part, final=at + len(part) >= len(data))
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
