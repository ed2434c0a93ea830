"""What libraries write past Python, to a file descriptor, turned elsewhere."""

import contextlib
import os
import sys
from collections.abc import Iterator


@contextlib.contextmanager
def turned(number: int, to: int) -> Iterator[None]:
    """Within, what is written to one file descriptor, 1 or 2, arrives at another."""
    stream = {1: sys.stdout, 2: sys.stderr}[number]
    stream.flush()
    kept = os.dup(number)
    os.dup2(to, number)
    try:
        yield
    finally:
        stream.flush()
        os.dup2(kept, number)
        os.close(kept)
