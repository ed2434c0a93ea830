"""Matrices of 8-bit floats with scales."""

from dataclasses import dataclass

import ml_dtypes
import numpy as np

from llama_jax.formats.quantised.blocks import Blocks
from llama_jax.formats.quantised.parts import Parts
from llama_jax.formats.quantised.rows import by_rows

E4M3 = "float8_e4m3fn"
FLOATS = ("float32", "bfloat16", "float16")
# Types of scales that are powers of two, kept as their exponents.
POWERS = ("uint8", "float8_e8m0fnu")
# The number of each byte: a look-up is faster than a cast.
VALUES = np.arange(256, dtype=np.uint8).view(ml_dtypes.float8_e4m3fn).astype(np.float32)
FLOAT32, BFLOAT16 = np.dtype(np.float32), np.dtype(ml_dtypes.bfloat16)


@dataclass(frozen=True)
class Float8:
    """e4m3 numbers, each rectangle of which is multiplied by a scale.

    Attributes:
      shape: the axes of the matrix.
      blocks: what has a scale in common.
      scale: the tensor with the scales.
      dtype: type of the product, which is rounded once.
    """

    shape: tuple[int, int]
    blocks: Blocks
    scale: str
    dtype: np.dtype

    name = "scaled_float8"

    def expand(self, parts: Parts) -> np.ndarray:
        """The products."""
        stored = parts.load("weight").view(np.uint8)
        scales = numbers(parts.load(self.scale)).reshape(self.blocks.shape(self.shape))

        def make(first: int, end: int) -> np.ndarray:
            over = self.blocks.over(scales, first, end, self.shape[1])
            return np.take(VALUES, stored[first:end], mode="clip") * over

        return by_rows(self.shape, self.dtype, make)


def float8(parts: Parts, blocks: Blocks, scale: str, dtype: np.dtype | None = None) -> Float8:
    """The packing of a module with a `weight` of e4m3 numbers.

    Args:
      parts: the module's tensors.
      blocks: what has a scale in common.
      scale: the word of the tensor with the scales.
      dtype: type of the product; the scales' own by default.

    Raises:
      FormatError: a tensor that is missing, or of another type or shape.
    """
    shape = parts.matrix("weight", [E4M3])
    parts.check(scale, (*FLOATS, *POWERS), *blocks.shapes(shape))
    kind = np.dtype(BFLOAT16 if parts.kind(scale) in POWERS else parts.kind(scale))
    return Float8(shape, blocks, scale, kind if dtype is None else dtype)


def numbers(scales: np.ndarray) -> np.ndarray:
    """Scales as float32; of bytes, which are exponents, the powers of two."""
    if scales.dtype.name in POWERS:
        with np.errstate(over="ignore"):  # 255 stands for no number
            return np.ldexp(FLOAT32.type(1), scales.view(np.uint8).astype(np.int32) - 127)
    return scales.astype(FLOAT32)
