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
