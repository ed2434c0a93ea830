"""Links out of a checkpoint's folder: when they are followed.

A folder that came from elsewhere may hold a link to any file of this machine, and what is opened
may be copied into another checkpoint. So a link is followed within the folder and, as in the caches
of Hugging Face, to the `blobs` beside the snapshots; and in a folder that holds nothing but links,
for that is a person's own view of other folders. Everything else waits until it is allowed.
"""

import contextlib
import contextvars
from collections.abc import Iterator
from pathlib import Path

_allowed = contextvars.ContextVar("links out of a folder", default=False)


@contextlib.contextmanager
def following(allowed: bool = True) -> Iterator[None]:
    """Follows links wherever they lead, while this lasts; False changes nothing."""
    token = _allowed.set(allowed or _allowed.get())
    try:
        yield
    finally:
        _allowed.reset(token)


def may_follow(path: Path) -> bool:
    """Whether a file in a folder may be opened, if it is a link."""
    real, folder = path.resolve(), path.parent
    root = folder.resolve()
    near = [root, *(p / "blobs" for p in root.parents if p.name.startswith("models--"))]
    if any(real.is_relative_to(place) for place in near):
        return True
    return _allowed.get() or all(entry.is_symlink() for entry in folder.iterdir())
