"""Scales that the numbers of a rectangle have in common."""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Blocks:
    """Which numbers of a matrix have one scale; the last ones may be smaller.

    Attributes:
      rows: how many a rectangle has, or None for all.
      columns: how many a rectangle has, or None for all.
    """

    rows: int | None
    columns: int | None

    def shape(self, matrix: tuple[int, int]) -> tuple[int, int]:
        """How many rectangles a matrix has, down and across."""
        sizes = zip(matrix, (self.rows, self.columns), strict=True)
        down, across = (1 if size is None else -(-whole // size) for whole, size in sizes)
        return down, across

    def shapes(self, matrix: tuple[int, int]) -> tuple[tuple[int, ...], ...]:
        """Shapes in which files hold the scales: without axes of one, if they like."""
        down, across = self.shape(matrix)
        found: list[tuple[int, ...]] = [(down, across)]
        if across == 1:
            found.append((down,))
        if down == across == 1:
            found.append(())
        return tuple(found)

    def over(self, scales: np.ndarray, first: int, end: int, width: int) -> np.ndarray:
        """The scale of every number of the rows from `first` to `end`, or of every row.

        Args:
          scales: `[down, across]`.
          first: the first row.
          end: the row behind the last.
          width: columns of the matrix.
        """
        if self.rows == 1:
            scales = scales[first:end]
        elif self.rows is not None:
            scales = scales[np.arange(first, end) // self.rows]
        if self.columns is None:
            return scales
        return np.repeat(scales, self.columns, axis=1)[:, :width]


TENSOR, CHANNEL = Blocks(None, None), Blocks(1, None)
