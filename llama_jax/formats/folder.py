"""A folder that appears under its name when all of it is written, or not at all."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

from llama_jax.errors import UserError
from llama_jax.files import whole_folder


def check_free(place: str | Path, file: bool = False) -> None:
    """Checks that nothing is overwritten.

    Args:
      place: where a folder will be, which may be there and empty, or a file.
      file: which of the two.

    Raises:
      UserError: something is there.
    """
    path = Path(place)
    empty = path.is_dir() and not file and not any(path.iterdir())
    if (path.exists() or path.is_symlink()) and not empty:
        raise UserError(
            f"{place} is there already{'' if file else ' and is not empty'}; give another name"
        )


@contextlib.contextmanager
def writing(folder: str | Path) -> Iterator[Path]:
    """Gives a folder beside `folder` to write to, which takes its name at the end.

    Raises:
      UserError: `folder` is there and not empty, or the disk cannot be written.
    """
    check_free(folder)
    try:
        with whole_folder(folder) as draft:
            yield draft
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise UserError(
            f"{folder} cannot be written ({reason}); make room, or go elsewhere"
        ) from None
