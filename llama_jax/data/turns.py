"""Whose turn it is when several sources take turns, each as evenly as its weight allows.

Of k turns floor(k rest / whole + phase) are left to the sources after the first, which share them
in the same way. With the same phase, those who read side by side turn to a source all at once.
"""

from collections.abc import Sequence

import numpy as np

# Of each source: all there is to it and those after it, what is after it, where turning begins.
Turns = list[tuple[int, int, int]]


def turns(parts: Sequence[int], phases: Sequence[float] = ()) -> Turns:
    """How sources take turns.

    Args:
      parts: the weight of each in whole numbers, above 0; in so many turns as their sum, each has
        exactly its number.
      phases: where each begins to turn, in [0, 1); at 0 by default.
    """
    rests = np.cumsum(parts[::-1])[::-1].tolist()
    return [
        (now, after, int(now * phase))
        for now, after, phase in zip(
            rests, [*rests[1:], 0], phases or [0.0] * len(rests), strict=True
        )
    ]


def turn(index: int, order: Turns) -> tuple[int, int]:
    """The source that has a turn, and how many turns it had before."""
    for source, (now, after, phase) in enumerate(order):
        left, next_left = ((k * after + phase) // now for k in (index, index + 1))
        if left == next_left:
            return source, index - left
        index = left
    raise AssertionError("the last source takes what is left")
