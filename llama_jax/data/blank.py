"""Rows without text: one rule for every task and for `llama-jax prepare`.

They are left out and counted. A source of more than `INDEXED` rows is not read through on opening:
there such a row keeps its place in a batch and nothing is learned from it.
"""

from collections.abc import Callable

import numpy as np

from llama_jax.data.rows import Rows
from llama_jax.errors import UserError

INDEXED = 200_000  # rows; a larger source is not read through on opening


def filled(rows: Rows, keep: np.ndarray, texts: Callable[[int], list[str]]) -> np.ndarray:
    """Of the rows to use, those in which no text is blank; the rows note how many are left out.

    Args:
      rows: the opened source.
      keep: indices of the rows to use, int [N].
      texts: the texts of a row that must hold something.

    Returns:
      Indices, int [M], in the order they came.

    Raises:
      UserError: none is left.
    """
    if len(rows) > INDEXED:
        return keep
    blank_N = np.array([not all(map(str.strip, texts(i))) for i in keep.tolist()], bool)
    if blank_N.all():
        raise UserError(f"{rows.name} holds no text in any of its {len(keep):,} rows")
    if blank_N.any():
        rows.notes.append(left_out(rows.name, int(blank_N.sum()), len(keep)))
    return keep[~blank_N]


def left_out(name: str, blank: int, of: int) -> str:
    """The line that counts them."""
    return f"{name}: {blank:,} of {of:,} rows hold no text and are left out"
