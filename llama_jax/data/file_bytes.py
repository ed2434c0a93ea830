"""The bytes of a file that may be large, read where they are asked for.

Not mapped: a mapped file that another program shortens ends the process that reads it, without a
word. Each read is checked against what the file was when it was opened, so a file that changes
under a run is an error with its name. Few files are kept open, however many there are.
"""

import functools
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

from llama_jax.errors import UserError

COMPRESSED = {".gz": "gzip", ".zst": "zstd", ".bz2": "bz2"}
CHUNK = 1 << 24  # bytes looked at in one go
OPEN = 128  # files kept open; a process may usually have 1,024


class Bytes(Protocol):
    """What has a length and gives bytes for a slice."""

    def __len__(self) -> int:
        """How many there are."""
        ...

    def __getitem__(self, part: slice, /) -> bytes:
        """Some of them."""
        ...


class FileBytes:
    """The bytes of a file as it was when this was made."""

    def __init__(self, path: Path):
        """Notes what the file is now."""
        self.path, self.stamp = path, stamp(path)

    def __len__(self) -> int:
        """Its size."""
        return self.stamp[0]

    def __getitem__(self, part: slice) -> bytes:
        """Reads them.

        Raises:
          UserError: the file has changed since it was opened.
        """
        begin, end, _ = part.indices(len(self))
        file = _file(self.path, self.stamp)
        found = file.read(begin, max(0, end - begin))
        if file.stamp() != self.stamp or len(found) < end - begin:
            raise changed(self.path)
        return found


def opened(path: Path) -> Bytes:
    """The bytes of a file, decompressed if its name says that it is compressed.

    A compressed file has no random access: it is held whole, and only the last few of them are.

    Raises:
      UserError: it is compressed and damaged.
    """
    if path.suffix.lower() in COMPRESSED:
        return _decompressed(path, stamp(path))
    return FileBytes(path)


def chunks(data: Bytes) -> Iterator[tuple[int, bytes]]:
    """Yields all of it, some megabytes at a time, each with where it begins."""
    for at in range(0, len(data), CHUNK):
        yield at, data[at : at + CHUNK]


def stamp(path: Path) -> tuple[int, int]:
    """A file's size and when it was changed, in nanoseconds."""
    return _stamp(path.stat())


def changed(path: Path) -> UserError:
    """What is raised of a file that is no longer what it was."""
    return UserError(
        f"{str(path)!r} has changed since it was opened; give the same command again when nothing "
        "writes to it any more"
    )


class _Descriptor:
    """A file that is open for as long as somebody, in whichever thread, still reads it."""

    def __init__(self, path: Path):
        self.number = os.open(path, os.O_RDONLY)

    def __del__(self) -> None:
        if hasattr(self, "number"):
            os.close(self.number)

    def read(self, begin: int, count: int) -> bytes:
        parts = []
        while count > 0 and (part := os.pread(self.number, count, begin)):
            parts.append(part)
            begin, count = begin + len(part), count - len(part)
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def stamp(self) -> tuple[int, int]:
        return _stamp(os.fstat(self.number))


@functools.lru_cache(maxsize=OPEN)
def _file(path: Path, stamp: tuple[int, int]) -> _Descriptor:
    del stamp  # a part of the key: another file of this name is opened anew
    return _Descriptor(path)


@functools.lru_cache(maxsize=2)
def _decompressed(path: Path, stamp: tuple[int, int]) -> bytes:
    import pyarrow

    del stamp  # a part of the key
    try:
        kind = COMPRESSED[path.suffix.lower()]
        with pyarrow.input_stream(str(path), compression=kind) as stream:
            return stream.read()
    except (OSError, pyarrow.ArrowException) as error:
        reason = str(error).partition("\n")[0][:200]
        raise UserError(
            f"{str(path)!r} cannot be decompressed ({reason}); was it copied whole?"
        ) from None


def _stamp(found: Any) -> tuple[int, int]:
    return found.st_size, found.st_mtime_ns
