"""Checkpoints of GPTQ (AutoGPTQ, GPTQModel): groups of input columns, in any order.

    qweight  int32 [in bits/32, out]      numbers down the input axis, the lowest bits first
    qzeros   int32 [groups, out bits/32]  along the output axis
    scales   float16 [groups, out]
    g_idx    int32 [in]                   the group of each input column

W[o, i] = scales[g, o] (q[i, o] - z[g, o]), g = g_idx[i]. Version 1 stores z - 1, and does so by
subtracting from whole words: a zero that is 0 takes from its neighbours, so 1 is added to words.
"""

from dataclasses import dataclass

import numpy as np

from llama_jax.formats.quantised.bits import fields, words
from llama_jax.formats.quantised.fields import Config
from llama_jax.formats.quantised.float8 import FLOATS
from llama_jax.formats.quantised.order import groups_of, of_groups
from llama_jax.formats.quantised.parts import Parts
from llama_jax.formats.quantised.rows import by_rows

BITS = (2, 3, 4, 8)
# A one in every field of a word; three bits do not divide one.
ONES = {2: 0x55555555, 4: 0x11111111, 8: 0x01010101}


@dataclass(frozen=True)
class GptqMatrix:
    """A matrix whose numbers lie down its input axis.

    Attributes:
      shape: out and in, the axes of the matrix.
      bits: how many a number has.
      group: columns that have a scale in common, where no tensor says it.
      less: what stored zero points are too small by.
    """

    shape: tuple[int, int]
    bits: int
    group: int
    less: int

    @property
    def name(self) -> str:
        """As "gptq4"."""
        return f"gptq{self.bits}"

    def expand(self, parts: Parts) -> np.ndarray:
        """The products, rounded once to the scales' type."""
        out, width = self.shape
        stored, scales = parts.load("qweight"), parts.load("scales")
        group = np.arange(width) // self.group
        if "g_idx" in parts:
            group = groups_of(parts, "g_idx", parts.load("g_idx"), len(scales))
        zeros = np.array(self._zeros(parts.load("qzeros"), out).T, np.float32, order="C")
        wide = np.array(scales.T, np.float32, order="C")

        def make(first: int, end: int) -> np.ndarray:
            rows = fields(stored[:, first:end].T, self.bits, width).astype(np.float32)
            rows -= of_groups(zeros[first:end], group)
            rows *= of_groups(wide[first:end], group)
            return rows

        return by_rows(self.shape, scales.dtype, make)

    def _zeros(self, stored: np.ndarray, out: int) -> np.ndarray:
        """Zero points, `[groups, out]`."""
        if not self.less:
            return fields(stored, self.bits, out)
        if self.bits in ONES:
            return fields(stored.view(np.uint32) + np.uint32(ONES[self.bits]), self.bits, out)
        return (fields(stored, self.bits, out) + 1) & (2**self.bits - 1)


@dataclass(frozen=True)
class Gptq:
    """How a checkpoint is quantised.

    Attributes:
      bits: how many a number has.
      group: columns that have a scale in common; None for all.
      ordered: whether columns are in the order of their groups, so that g_idx may be missing.
      less: what stored zero points are too small by: 1 in version 1, 0 in version 2.
    """

    bits: int
    group: int | None
    ordered: bool
    less: int

    parts = ("qweight", "qzeros", "scales", "g_idx")
    dropped = ()

    def packing(self, parts: Parts) -> GptqMatrix | None:
        """How a module's matrix is packed, or None if it is plain; errors as of `Scheme`."""
        if not any(part in parts for part in self.parts):
            return None
        down, out = parts.matrix("qweight", ["int32"])
        if down * 32 % self.bits:
            raise parts.wrong(
                "qweight", f"has {down} rows; whole numbers of {self.bits} bits were expected"
            )
        width = down * 32 // self.bits
        if "g_idx" in parts or not self.ordered:
            parts.check("g_idx", ["int32"], (width,))
        group = self.group or width
        groups = -(-width // group)
        parts.check("scales", FLOATS, (groups, out))
        parts.check("qzeros", ["int32"], (groups, words(out, self.bits)))
        return GptqMatrix((out, width), self.bits, group, self.less)


def gptq(config: Config) -> Gptq:
    """The scheme of quant_method "gptq"."""
    config.one_of("is_marlin_format", False)
    config.one_of("pack_dtype", "int32")
    if config.get("dynamic"):
        raise config.wrong("dynamic", "one number of bits for all modules")
    version = config.get("checkpoint_format", config.get("format", "gptq"))
    if version not in ("gptq", "gptq_v2"):
        raise config.wrong("checkpoint_format", "'gptq' or 'gptq_v2'")
    size = config.size("group_size", 128)
    return Gptq(
        bits=config.one_of("bits", *BITS, None) or _missing(config),
        group=None if size == -1 else size,
        ordered=not config.one_of("desc_act", True, False),
        less=1 if version == "gptq" else 0,
    )


def _missing(config: Config) -> int:
    raise config.wrong("bits", " or ".join(map(str, BITS)))
