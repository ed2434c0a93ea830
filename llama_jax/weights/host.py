"""A CPU's parameters, which are the host's own memory: turned by NumPy, a core to each tensor.

Nothing is compiled, which for a small model takes longer than to read it: SmolLM2-135M's programs
that turn weights 0.4 s, its weights 0.3 s of one core. `read` compiles what others need: arrays of
all layers, several devices, accelerators.
"""

import contextlib
import ctypes
import math
import os
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import jax.numpy as jnp
import numpy as np

from llama_jax.errors import FormatError
from llama_jax.families.names import Name
from llama_jax.formats.safetensors import ALIGNMENT, aligned
from llama_jax.formats.source import Source

LINE = 64  # bytes that a core writes at once


def arrays(
    source: Source,
    names: Sequence[Name],
    dtype: np.dtype,
    most: int,
    progress: Callable[[Iterable[Name]], Iterable[Name]] = iter,
) -> Iterator[tuple[Name, np.ndarray]]:
    """Each weight in its turn, on a boundary on which jax takes it without a copy.

    Args:
      source: the file or files.
      names: what is read.
      dtype: what parameters are kept in.
      most: numbers of tensors, as they are in the file, that are held at once; one larger than that
        is held alone.
      progress: wraps the names while they are read.

    Raises:
      FormatError: a tensor with values that are not finite.
    """
    room = _Room(most)
    with ThreadPoolExecutor(min(4, os.cpu_count() or 1), "weights") as pool:
        made = [pool.submit(_one, room, source, name, dtype) for name in names]
        made.reverse()  # each is forgotten once it is given away
        try:
            for name in progress(names):
                yield name, made.pop().result()
        finally:
            for future in made:
                future.cancel()
    _give_back()


def _give_back() -> None:
    """Gives the system what tensors took on their way, 20 MB that glibc would keep."""
    with contextlib.suppress(AttributeError, OSError, TypeError):  # of another allocator
        ctypes.CDLL(None).malloc_trim(0)


class _Room:
    """How many numbers are held beside the parameters."""

    def __init__(self, most: int):
        self.most, self.held, self.change = most, 0, threading.Condition()

    @contextlib.contextmanager
    def of(self, numbers: int) -> Iterator[None]:
        with self.change:
            self.change.wait_for(lambda: not self.held or self.held + numbers <= self.most)
            self.held += numbers
        try:
            yield
        finally:
            with self.change:
                self.held -= numbers
                self.change.notify_all()


def _one(room: _Room, source: Source, name: Name, dtype: np.dtype) -> np.ndarray:
    with room.of(math.prod(name.shape)):
        tensor = source.read(name.tensor)
        # Of a number that the type cannot hold comes infinity, without a warning.
        with np.errstate(over="ignore", invalid="ignore"):
            ends = np.stack([tensor.max(), tensor.min()]).astype(dtype)  # NaN if there is one
            if not np.isfinite(ends.astype(np.float32)).all():
                raise not_finite(name.tensor, dtype)
            return _turned(name.ours(tensor), dtype)


def _turned(weight: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """The same numbers in the order of their axes; itself, where that can be kept as it is."""
    whole = weight.flags.c_contiguous and weight.dtype == dtype and weight.flags.writeable
    if whole and weight.ctypes.data % ALIGNMENT == 0:
        return weight
    out = aligned(weight.size * dtype.itemsize).view(dtype).reshape(weight.shape)
    # Of a weight that is turned, a line of each row at a time: in whole rows a line that is read
    # has left the cache when its next number is wanted (2.0 against 0.4 ms for 576 x 1536).
    step = weight.shape[-1] if weight.flags.c_contiguous else LINE // dtype.itemsize
    for i in range(0, weight.shape[-1], step):
        np.copyto(out[..., i : i + step], weight[..., i : i + step], casting="unsafe")
    return out


def not_finite(tensor: str, dtype: np.dtype) -> FormatError:
    """The error for a tensor with values that are not finite, or not in `dtype`."""
    return FormatError(
        f"tensor {tensor!r} holds values that are not finite as {jnp.dtype(dtype).name}, which "
        f"ends at {float(jnp.finfo(dtype).max):.3g}; is the file damaged, or would bfloat16 do?"
    )
