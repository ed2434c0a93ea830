"""Checkpoints of bitsandbytes: 8-bit rows, and 4 bits in blocks that cross rows.

weight                            int8 [out, in]
SCB                               float32 [out], the largest of each row
weight_format                     0: by rows

weight                            two numbers a byte, the first in the high half
weight.absmax                     a scale for each block; bytes, if these are quantised too
weight.quant_map                  the number of each code
weight.nested_absmax, weight.nested_quant_map
weight.quant_state.bitsandbytes__nf4, or __fp4: JSON, which alone tells the shape
"""

import json
import math
from dataclasses import dataclass
from typing import Any, TypeGuard

import ml_dtypes
import numpy as np

from llama_jax.formats.quantised.bits import nibbles
from llama_jax.formats.quantised.fields import Config
from llama_jax.formats.quantised.parts import Parts
from llama_jax.formats.quantised.rows import by_rows

STATES = {f"weight.quant_state.bitsandbytes__{kind}": kind for kind in ("nf4", "fp4")}
ABSMAX, MAP = "weight.absmax", "weight.quant_map"
OUTER, OUTER_MAP = "weight.nested_absmax", "weight.nested_quant_map"
TYPES = {
    "float32": np.dtype(np.float32),
    "float16": np.dtype(np.float16),
    "bfloat16": np.dtype(ml_dtypes.bfloat16),
}
STATE_BYTES = 2**12
PER_127 = np.float32(7.874015718698502e-3)


@dataclass(frozen=True)
class Rows8:
    """Rows of bytes; 127 is the largest of a row.

    Attributes:
      shape: the axes of the matrix.
    """

    shape: tuple[int, int]

    name = "bitsandbytes8"

    def expand(self, parts: Parts) -> np.ndarray:
        """The products, float32."""
        stored, largest = parts.load("weight"), parts.load("SCB")[:, None]

        def make(first: int, end: int) -> np.ndarray:
            return stored[first:end] * largest[first:end] * PER_127

        return by_rows(self.shape, TYPES["float32"], make)


@dataclass(frozen=True)
class Blocks4:
    """Codes of four bits, a scale for so many of them, whatever row they are in.

    Attributes:
      shape: the axes of the matrix.
      name: "nf4" or "fp4", for messages: the numbers of the codes stand in the file.
      dtype: what products are rounded to.
      block: codes of a scale.
      nested: how the scales are quantised, or None.
    """

    shape: tuple[int, int]
    name: str
    dtype: np.dtype
    block: int
    nested: "Nested | None"

    def expand(self, parts: Parts) -> np.ndarray:
        """The products."""
        count, values = math.prod(self.shape), parts.load(MAP)
        scales = parts.load(ABSMAX)
        if self.nested is not None:
            scales = self.nested.expand(scales, parts)
        blocks = len(scales)
        stored = parts.load("weight").reshape(-1).view(np.uint8)[: -(-count // 2)]
        stored = np.pad(stored, (0, blocks * self.block // 2 - len(stored)))
        stored = stored.reshape(blocks, self.block // 2)

        def make(first: int, end: int) -> np.ndarray:
            codes = nibbles(stored[first:end], high_first=True)
            return np.take(values, codes, mode="clip") * scales[first:end, None]

        made = by_rows((blocks, self.block), self.dtype, make)
        return made.reshape(-1)[:count].reshape(self.shape)


@dataclass(frozen=True)
class Nested:
    """Scales that are codes of eight bits themselves ("double quantisation").

    Attributes:
      block: scales that have one of their own in common.
      offset: what is added to all.
    """

    block: int
    offset: float

    def expand(self, codes: np.ndarray, parts: Parts) -> np.ndarray:
        """The scales, float32."""
        outer = np.repeat(parts.load(OUTER), self.block)[: len(codes)]
        return parts.load(OUTER_MAP)[codes] * outer + np.float32(self.offset)


@dataclass(frozen=True)
class Bitsandbytes:
    """A module's tensors say how it is quantised."""

    parts = ("SCB", "weight_format", ABSMAX, MAP, OUTER, OUTER_MAP, *STATES)
    dropped = ()

    def packing(self, parts: Parts) -> Rows8 | Blocks4 | None:
        """How a module's matrix is packed, or None if it is plain; errors as of `Scheme`."""
        if "SCB" in parts or parts.kind("weight") == "int8":
            return _rows8(parts)
        state = next((name for name in STATES if name in parts), None)
        if state is None and MAP not in parts:
            return None
        return _blocks4(parts, state or next(iter(STATES)))


def bitsandbytes(config: Config) -> Bitsandbytes:
    """The scheme of quant_method "bitsandbytes", whose settings are about the quantising."""
    return Bitsandbytes()


def _rows8(parts: Parts) -> Rows8:
    shape = parts.matrix("weight", ["int8"])
    parts.check("SCB", ["float32"], shape[:1])
    if "weight_format" in parts:
        parts.check("weight_format", ["uint8"], (), (1,))
        if (told := int(parts.load("weight_format").reshape(()))) != 0:
            raise parts.wrong("weight_format", f"is {told}; 0, by rows, was expected")
    return Rows8(shape)


def _blocks4(parts: Parts, state: str) -> Blocks4:
    parts.check(state, ["uint8"])
    told = _state(parts, state)
    shape, dtype, block = told.get("shape"), told.get("dtype"), told.get("blocksize")
    out, width = shape if isinstance(shape, list) and len(shape) == 2 else (None, None)
    if not (_whole(out) and _whole(width) and _whole(block)) or block % 2 or dtype not in TYPES:
        raise parts.wrong(
            state,
            f"says shape={shape!r:.60}, dtype={dtype!r:.20}, blocksize={block!r:.20}; two sizes, "
            f"{' or '.join(TYPES)} and an even number were expected",
        )
    count = out * width
    blocks = -(-count // block)
    _check_bytes(parts, count)
    parts.check(MAP, ["float32"], (16,))
    nested = None
    if OUTER in parts or "nested_blocksize" in told:
        nested = _nested(parts, state, told, blocks)
    else:
        parts.check(ABSMAX, ["float32"], (blocks,))
    return Blocks4((out, width), STATES[state], TYPES[dtype], block, nested)


def _nested(parts: Parts, state: str, told: dict[str, Any], blocks: int) -> Nested:
    block, offset = told.get("nested_blocksize"), told.get("nested_offset")
    if not _whole(block) or not isinstance(offset, int | float):
        raise parts.wrong(
            state,
            f"says nested_blocksize={block!r:.20}, nested_offset={offset!r:.20}; two numbers were "
            "expected",
        )
    parts.check(ABSMAX, ["uint8"], (blocks,))
    parts.check(OUTER, ["float32"], (-(-blocks // block),))
    parts.check(OUTER_MAP, ["float32"], (256,))
    return Nested(block, float(offset))


def _check_bytes(parts: Parts, count: int) -> None:
    """Checks that there are two numbers a byte; the bytes may be held as another type."""
    parts.check("weight", ["uint8", "int8", *TYPES])
    found = parts.tensors["weight"]
    size = TYPES[found.dtype].itemsize if found.dtype in TYPES else 1
    there, wanted = math.prod(found.shape) * size, -(-count // 2)
    # A wider type may end behind the last number.
    if not wanted <= there < wanted + size:
        raise parts.wrong("weight", f"has {there:,} bytes; {wanted:,} were expected")


def _state(parts: Parts, state: str) -> dict[str, Any]:
    if math.prod(parts.tensors[state].shape) > STATE_BYTES:
        raise parts.wrong(state, f"is larger than {STATE_BYTES:,} bytes")
    try:
        told = json.loads(parts.load(state).tobytes())
    except (ValueError, RecursionError):
        told = None
    if not isinstance(told, dict):
        raise parts.wrong(state, "holds no JSON object, as bitsandbytes writes one")
    return told


def _whole(value: Any) -> TypeGuard[int]:
    return type(value) is int and 0 < value < 2**40
