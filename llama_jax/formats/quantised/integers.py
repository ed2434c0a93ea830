"""Matrices of whole numbers with scales, and zero points if they are not symmetric."""

from dataclasses import dataclass

import numpy as np

from llama_jax.formats.quantised.bits import fields, words
from llama_jax.formats.quantised.blocks import Blocks
from llama_jax.formats.quantised.float8 import FLOATS
from llama_jax.formats.quantised.order import groups_of, of_groups
from llama_jax.formats.quantised.parts import Parts
from llama_jax.formats.quantised.rows import by_rows

WEIGHT, PACKED = "weight", "weight_packed"
SCALE, ZERO, SHAPE, ORDER = "weight_scale", "weight_zero_point", "weight_shape", "weight_g_idx"


@dataclass(frozen=True)
class Integer8:
    """A byte for each number: (q - zero) * scale, rounded once to the scale's type.

    Attributes:
      shape: the axes of the matrix.
      blocks: what has a scale in common.
    """

    shape: tuple[int, int]
    blocks: Blocks

    name = "scaled_int8"

    def expand(self, parts: Parts) -> np.ndarray:
        """The products."""
        down = self.blocks.shape(self.shape)
        stored, scales = parts.load(WEIGHT), parts.load(SCALE).reshape(down)
        zeros = parts.load(ZERO).reshape(down) if ZERO in parts else None
        width, wide = self.shape[1], scales.astype(np.float32)

        def make(first: int, end: int) -> np.ndarray:
            rows = stored[first:end].astype(np.float32)
            if zeros is not None:
                rows -= self.blocks.over(zeros, first, end, width).astype(np.float32)
            return rows * self.blocks.over(wide, first, end, width)

        return by_rows(self.shape, scales.dtype, make)


@dataclass(frozen=True)
class PackedInteger:
    """Numbers of some bits in rows of words: (q - zero) * scale, as `Integer8`.

    A stored number is q + 2^(bits - 1), and so is a stored zero point. The zero points of a column
    of scales lie one after the other in words, too.

    Attributes:
      shape: the axes of the matrix.
      bits: how many a number has.
      blocks: what has a scale in common.
    """

    shape: tuple[int, int]
    bits: int
    blocks: Blocks

    @property
    def name(self) -> str:
        """As "packed_int4"."""
        return f"packed_int{self.bits}"

    def expand(self, parts: Parts) -> np.ndarray:
        """The products."""
        out, width = self.shape
        stored, scales = parts.load(PACKED), parts.load(SCALE)
        scales = scales.reshape(self.blocks.shape(self.shape))
        group = self._order(parts, scales.shape[1])
        wide, zeros = scales.astype(np.float32), self._zeros(parts, scales.shape)

        def over(values: np.ndarray, first: int, end: int) -> np.ndarray:
            if group is not None:
                return of_groups(values[first:end], group)
            return self.blocks.over(values, first, end, width)

        def make(first: int, end: int) -> np.ndarray:
            rows = fields(stored[first:end], self.bits, width).astype(np.float32)
            rows -= over(zeros, first, end)
            rows *= over(wide, first, end)
            return rows

        return by_rows(self.shape, scales.dtype, make)

    def _zeros(self, parts: Parts, shape: tuple[int, ...]) -> np.ndarray:
        """What is subtracted from stored numbers, `[down, across]`."""
        middle = 2 ** (self.bits - 1)
        if ZERO not in parts:
            return np.full(shape, middle, np.float32)
        stored = parts.load(ZERO)
        if stored.dtype != np.int32:
            return stored.reshape(shape).astype(np.float32) + middle
        return fields(stored.T, self.bits, shape[0]).T.astype(np.float32)

    def _order(self, parts: Parts, count: int) -> np.ndarray | None:
        """The group of each column, or None if they lie in order."""
        if ORDER not in parts:
            return None
        group = parts.load(ORDER)
        # So they are when a program made room for the order and never used it.
        return None if (group == -1).any() else groups_of(parts, ORDER, group, count)


def integer8(parts: Parts, blocks: Blocks, symmetric: bool) -> Integer8:
    """The packing of a module with a `weight` of bytes.

    Raises:
      FormatError: a tensor that is missing, or of another type or shape.
    """
    shape = parts.matrix(WEIGHT, ["int8"])
    parts.check(SCALE, FLOATS, *blocks.shapes(shape))
    if not symmetric:
        parts.check(ZERO, ["int8"], *blocks.shapes(shape))
    return Integer8(shape, blocks)


def packed_integer(parts: Parts, bits: int, blocks: Blocks, symmetric: bool) -> PackedInteger:
    """The packing of a module with `weight_packed` of words; errors as of `integer8`."""
    out, across = parts.matrix(PACKED, ["int32"])
    parts.check(SHAPE, ["int64"], (2,))
    told = [int(n) for n in parts.load(SHAPE)]
    if told[0] != out or told[1] < 1 or words(told[1], bits) != across:
        raise parts.wrong(
            SHAPE, f"says {told}, and {PACKED} of {bits} bits has shape {[out, across]}"
        )
    shape = (out, told[1])
    if blocks.columns is not None and shape[1] % blocks.columns:
        raise parts.wrong(
            SHAPE, f"says {told}; rows of whole groups of {blocks.columns} were expected"
        )
    parts.check(SCALE, FLOATS, *blocks.shapes(shape))
    if not symmetric and blocks.rows is None:
        parts.check(ZERO, ["int8"], *blocks.shapes(shape))
    elif not symmetric:
        parts.check(ZERO, ["int32"], (words(out, bits), blocks.shape(shape)[1]))
    if ORDER in parts:
        parts.check(ORDER, ["int32"], (shape[1],))
    return PackedInteger(shape, bits, blocks)
