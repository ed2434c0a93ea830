"""A matrix made some rows at a time, so that what lies between stays in a core's cache."""

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from llama_jax.formats.safetensors import aligned

AT_A_TIME = 2**18  # numbers
WHOLE = 8  # rows: AWQ has so many in a word


def by_rows(
    shape: tuple[int, int], dtype: np.dtype, make: Callable[[int, int], np.ndarray]
) -> np.ndarray:
    """A matrix of `make(first, end)`, the rows from first on; cast to `dtype`.

    Beside the matrix, memory is needed for a few times `AT_A_TIME` numbers a core.
    """
    out = aligned(shape[0] * shape[1] * dtype.itemsize).view(dtype).reshape(shape)
    step = max(AT_A_TIME // max(shape[1], 1) // WHOLE, 1) * WHOLE

    def fill(first: int) -> None:
        end = min(first + step, shape[0])
        # What is not finite is refused where it is read.
        with np.errstate(over="ignore", invalid="ignore", under="ignore"):
            np.copyto(out[first:end], make(first, end), casting="unsafe")

    starts = range(0, shape[0], step)
    if len(starts) == 1:
        fill(0)
        return out
    with ThreadPoolExecutor(min(4, os.cpu_count() or 1), "expand") as pool:
        list(pool.map(fill, starts))
    return out
