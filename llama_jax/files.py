"""Files and folders that appear under their name when all of them is written, or not at all."""

import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

# Where the command line keeps compiled programs, unless LLAMA_JAX_CACHE names another folder.
CACHE = "~/.cache/llama_jax/xla"
DRAFT = ".unfinished"  # the end of the name of what is not all there yet


def cache_folder() -> str:
    """Where compiled programs are kept if jax is told of no other folder; "" is nowhere."""
    return os.environ.get("LLAMA_JAX_CACHE", str(at_home(CACHE)))


def at_home(path: str | os.PathLike[str]) -> Path:
    """The path with the folder of a user in place of ~; as it stands if there is no such user."""
    try:
        return Path(path).expanduser()
    except RuntimeError:
        return Path(path)


@contextlib.contextmanager
def whole_file(path: str | Path) -> Iterator[Path]:
    """Gives a path beside `path` to write to; the file takes its name, and its place, at the end.

    Args:
      path: where the file will be.

    Raises:
      OSError: it cannot be written; `path` is as it was.
    """
    place = Path(path).absolute()
    draft = place.with_name(f"{place.name}.{os.getpid()}{DRAFT}")
    try:
        yield draft
        os.replace(draft, place)
    finally:
        draft.unlink(missing_ok=True)


@contextlib.contextmanager
def whole_folder(path: str | Path) -> Iterator[Path]:
    """Gives a folder beside `path` to write to, which takes its name at the end.

    Args:
      path: where the folder will be; nothing is there, or an empty folder.

    Raises:
      OSError: it cannot be written, or something is there; `path` is as it was.
    """
    place = Path(path).absolute()
    draft = place.with_name(f"{place.name}.{os.getpid()}{DRAFT}")
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        draft.mkdir()
        yield draft
        draft.rename(place)  # on POSIX an empty folder may be in the way
    finally:
        shutil.rmtree(draft, ignore_errors=True)
