"""A folder that one process at a time writes, each file of it whole or not at all.

An error of the system becomes one line here: which place, for which reason, and what helps.
"""

import contextlib
import errno
import fcntl
from collections.abc import Iterator
from pathlib import Path

from llama_jax.data.manifest import LOCK
from llama_jax.errors import UserError
from llama_jax.files import whole_file

FULL = (errno.ENOSPC, errno.EDQUOT)


@contextlib.contextmanager
def locked(out: Path) -> Iterator[None]:
    """Makes a folder and holds its lock; the kernel gives it back when a process dies.

    Raises:
      UserError: another process holds it, or the folder cannot be made.
    """
    with contextlib.ExitStack() as stack:
        with writing(out):
            out.mkdir(parents=True, exist_ok=True)
            lock = stack.enter_context((out / LOCK).open("w"))
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise UserError(
                    f"another process prepares {str(out)!r}; wait for it, or give another folder"
                ) from None
        yield


@contextlib.contextmanager
def writing(out: Path) -> Iterator[None]:
    """Within, what the system says is said of the folder that is written."""
    try:
        yield
    except OSError as error:
        there = "a file has this name" if isinstance(error, FileExistsError) else _reason(error)
        way = "make room there" if error.errno in FULL else "give a folder that can be written"
        raise UserError(f"{str(out)!r} cannot be written ({there}); {way}") from None


@contextlib.contextmanager
def reading(source: str) -> Iterator[None]:
    """Within, what the system says is said of the source that is read."""
    try:
        yield
    except OSError as error:
        raise UserError(
            f"{source} cannot be read ({_reason(error)}); is it a file that you may read, on a "
            "disk that is there?"
        ) from None


def write(path: Path, content: bytes) -> None:
    """Writes a file whole or not at all.

    Raises:
      UserError: it cannot be written.
    """
    with writing(path.parent), whole_file(path) as draft:
        draft.write_bytes(content)


def _reason(error: OSError) -> str:
    return error.strerror or type(error).__name__
