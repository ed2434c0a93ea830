"""Columns in another order than their groups, as "activation order" leaves them."""

import numpy as np

from llama_jax.formats.quantised.parts import Parts


def groups_of(parts: Parts, part: str, group: np.ndarray, count: int) -> np.ndarray:
    """The group of every column, which a tensor holds.

    Args:
      parts: the module's tensors.
      part: the word of the tensor, for the message.
      group: what it holds.
      count: groups.

    Raises:
      FormatError: a group that there is not.
    """
    if group.size and not 0 <= group.min() <= group.max() < count:
        raise parts.wrong(
            part, f"names groups {group.min()} to {group.max()}; 0 to {count - 1} were expected"
        )
    return group


def of_groups(values: np.ndarray, group: np.ndarray) -> np.ndarray:
    """What each column has of its group's: `[rows, groups]` to `[rows, columns]`, row by row.

    Indexing would give the same numbers column by column in memory, which is slow to read in rows.
    """
    return np.take(values, group, axis=1, mode="clip")
