"""Matrices of 4-bit floats (e2m1), two in a byte, the first in the low half."""

from dataclasses import dataclass

import numpy as np

from llama_jax.formats.quantised.bits import nibbles
from llama_jax.formats.quantised.blocks import Blocks
from llama_jax.formats.quantised.float8 import BFLOAT16, E4M3, POWERS, VALUES, numbers
from llama_jax.formats.quantised.parts import Parts
from llama_jax.formats.quantised.rows import by_rows

PACKED, SCALE, GLOBAL = "weight_packed", "weight_scale", "weight_global_scale"
HALF = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6], np.float32)
CODES = np.concatenate([HALF, -HALF])


@dataclass(frozen=True)
class Nvfp4:
    """Sixteen numbers have an e4m3 scale, which is divided by one of the whole matrix.

    Attributes:
      shape: the axes of the matrix.
    """

    shape: tuple[int, int]

    name = "nvfp4"

    def expand(self, parts: Parts) -> np.ndarray:
        """The products, rounded once to bfloat16."""
        whole = parts.load(GLOBAL).reshape(1, 1)
        with np.errstate(all="ignore"):  # of a zero comes what is not finite, and is refused
            scales = VALUES[parts.load(SCALE).view(np.uint8)] / whole
        return products(parts.load(PACKED), self.shape, NVFP4, scales, BFLOAT16)


@dataclass(frozen=True)
class Mxfp4:
    """Thirty-two numbers have a power of two.

    Attributes:
      shape: the axes of the matrix.
    """

    shape: tuple[int, int]

    name = "mxfp4"

    def expand(self, parts: Parts) -> np.ndarray:
        """The products, rounded once to bfloat16."""
        scales = numbers(parts.load(SCALE))
        return products(parts.load(PACKED), self.shape, MXFP4, scales, BFLOAT16)


NVFP4, MXFP4 = Blocks(1, 16), Blocks(1, 32)


def nvfp4(parts: Parts) -> Nvfp4:
    """The packing of a module; raises FormatError for a tensor that is missing or another one."""
    shape = shape_of(parts, PACKED, NVFP4)
    parts.check(SCALE, [E4M3], NVFP4.shape(shape))
    parts.check(GLOBAL, ["float32"], (1,), ())
    return Nvfp4(shape)


def mxfp4(parts: Parts) -> Mxfp4:
    """The packing of a module; errors as of `nvfp4`."""
    shape = shape_of(parts, PACKED, MXFP4)
    parts.check(SCALE, POWERS, MXFP4.shape(shape))
    return Mxfp4(shape)


def shape_of(parts: Parts, part: str, blocks: Blocks) -> tuple[int, int]:
    """The axes of a matrix that is packed in this tensor; errors as of `nvfp4`."""
    out, across = parts.matrix(part, ["uint8"])
    assert blocks.columns is not None
    if 2 * across % blocks.columns:
        raise parts.wrong(
            part,
            f"has rows of {2 * across} numbers; whole groups of {blocks.columns} were expected",
        )
    return out, 2 * across


def products(
    stored: np.ndarray,
    shape: tuple[int, int],
    blocks: Blocks,
    scales: np.ndarray,
    dtype: np.dtype,
) -> np.ndarray:
    """The numbers of the codes times their scales, float32, rounded once to `dtype`."""

    def make(first: int, end: int) -> np.ndarray:
        over = blocks.over(scales, first, end, shape[1])
        return np.take(CODES, nibbles(stored[first:end]), mode="clip") * over

    return by_rows(shape, dtype, make)
