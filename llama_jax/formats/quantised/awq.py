"""Checkpoints of AWQ, version "gemm": 4 bits, numbers along the output axis, interleaved.

    qweight  int32 [in, out/8]
    qzeros   int32 [groups, out/8]
    scales   float16 [groups, out]

W[o, i] = (q[i, o] - z[i // group, o]) scales[i // group, o]. Of a word, the half-bytes from the
lowest on are columns 0, 2, 4, 6, 1, 3, 5, 7.
"""

from dataclasses import dataclass

import numpy as np

from llama_jax.formats.quantised.blocks import Blocks
from llama_jax.formats.quantised.fields import Config
from llama_jax.formats.quantised.float8 import FLOATS
from llama_jax.formats.quantised.parts import Parts
from llama_jax.formats.quantised.rows import by_rows

# Which half-byte of a word column 0, 1, ... 7 is.
PLACE = [0, 4, 1, 5, 2, 6, 3, 7]


@dataclass(frozen=True)
class AwqMatrix:
    """A matrix whose numbers lie along its output axis.

    Attributes:
      shape: out and in, the axes of the matrix.
      group: columns that have a scale in common.
    """

    shape: tuple[int, int]
    group: int

    name = "awq4"

    def expand(self, parts: Parts) -> np.ndarray:
        """The products, rounded once to the scales' type."""
        stored, scales = parts.load("qweight"), parts.load("scales")
        zeros = columns(parts.load("qzeros")).astype(np.float32)
        wide = np.array(scales.T, np.float32, order="C")
        groups, width = Blocks(1, self.group), self.shape[1]

        def make(first: int, end: int) -> np.ndarray:
            rows = columns(stored[:, first // 8 : end // 8]).astype(np.float32)
            rows -= groups.over(zeros, first, end, width)
            rows *= groups.over(wide, first, end, width)
            return rows

        return by_rows(self.shape, scales.dtype, make)


def columns(stored: np.ndarray) -> np.ndarray:
    """The numbers of words `[in, out/8]` as `[out, in]`."""
    turned = np.ascontiguousarray(stored.T).view(np.uint32)
    apart = np.empty((len(turned), 8, turned.shape[1]), np.uint8)
    for column, place in enumerate(PLACE):
        np.copyto(apart[:, column], turned >> np.uint32(4 * place) & 15, casting="unsafe")
    return apart.reshape(-1, turned.shape[1])


@dataclass(frozen=True)
class Awq:
    """How a checkpoint is quantised.

    Attributes:
      group: columns that have a scale in common; None for all.
    """

    group: int | None

    parts = ("qweight", "qzeros", "scales")
    dropped = ()

    def packing(self, parts: Parts) -> AwqMatrix | None:
        """How a module's matrix is packed, or None if it is plain; errors as of `Scheme`."""
        if not any(part in parts for part in self.parts):
            return None
        width, across = parts.matrix("qweight", ["int32"])
        group = self.group or width
        if width % group:
            raise parts.wrong("qweight", f"has {width} rows; whole groups of {group} were expected")
        parts.check("scales", FLOATS, (width // group, 8 * across))
        parts.check("qzeros", ["int32"], (width // group, across))
        return AwqMatrix((8 * across, width), group)


def awq(config: Config) -> Awq:
    """The scheme of quant_method "awq"."""
    config.one_of("bits", 4)
    config.one_of("zero_point", True)
    config.one_of("backend", "autoawq")
    name = "version" if config.get("version") else "format"
    version = config.get(name, "gemm")
    if str(version).lower() != "gemm":
        raise config.wrong(name, "'gemm', the only layout that is read,")
    size = config.size("group_size", 128)
    return Awq(None if size == -1 else size)
