"""The header of a GGUF file, read strictly: its fields, and where its tensors are.

    "GGUF"   version u32, tensors u64, fields u64; all little endian
    fields   key, type u32, value                        a string is its length u64 and UTF-8
    tensors  name, axes u32, sizes u64 (inner first), type u32, offset u64
    data     from the next multiple of the alignment; offsets count from here

Why not `gguf.GGUFReader`: it makes several arrays for each of a tokenizer's 100,000 strings (4 s
for SmolLM2's; here 0.1 s), it meets malformed files with IndexError and the like, and it accepts
tensors that lie over each other. The enumerations are still the gguf package's.
"""

import math
import mmap
import struct
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from llama_jax.errors import FormatError

VERSIONS = (2, 3)
MOST = 2**24  # bytes of a string, items of a list: far beyond any vocabulary or template
LONGEST_KEY = 65_535  # bytes, by the specification
LONGEST_NAME = 64  # of a tensor, likewise
MOST_AXES = 4
ALIGNMENT = 32  # unless general.alignment says otherwise


@dataclass(frozen=True)
class Entry:
    """Where a tensor is.

    Attributes:
      shape: outermost axis first, as in NumPy; in the file it is the other way round.
      kind: a `gguf.GGMLQuantizationType`.
      start: where its bytes begin in the file.
      size: in bytes.
    """

    shape: tuple[int, ...]
    kind: Any
    start: int
    size: int


@dataclass(frozen=True)
class Header:
    """What stands before the data.

    Attributes:
      version: 2 or 3.
      fields: int, float, bool, str, list[str], or a NumPy array for a list of numbers.
      tensors: by name, in the file's order.
    """

    version: int
    fields: dict[str, Any]
    tensors: dict[str, Entry]


def read_header(data: mmap.mmap | bytes, place: Path | str) -> Header:
    """Reads and checks a header; nothing is allocated that the file has no bytes for.

    Args:
      data: the whole file.
      place: the path of the file, for messages.

    Raises:
      FormatError: what is wrong, with the name of the field or tensor.
    """
    at = _Cursor(data, place)
    if len(data) < 24 or data[:4] != b"GGUF":
        raise FormatError(f"{place} is not a GGUF file; it does not begin with 'GGUF'")
    at.skip(4, "magic")
    version = at.number("<I", "version")
    if version and version & 0xFFFF == 0:
        raise FormatError(f"{place}: a big-endian GGUF file; only little-endian ones can be read")
    if version not in VERSIONS:
        raise FormatError(f"{place}: GGUF version {version}; 2 or 3 was expected")
    tensors, fields = at.number("<Q", "tensors"), at.number("<Q", "fields")
    # The smallest field is a key of one byte with a value of one byte.
    at.room(fields, 8 + 1 + 4 + 1, f"{fields} fields")
    found_fields = _fields(at, fields)
    at.room(tensors, 8 + 1 + 4 + 8 + 4 + 8, f"{tensors} tensors")
    return Header(version, found_fields, _tensors(at, tensors, _alignment(found_fields, place)))


class _Cursor:
    """A place in the file that only moves forward, and never past the end."""

    def __init__(self, data: mmap.mmap | bytes, place: Path | str):
        self.data, self.place = data, place
        self.at, self.end = 0, len(data)

    def fail(self, why: str) -> FormatError:
        return FormatError(f"{self.place}: {why}")

    def room(self, count: int, size: int, what: str) -> None:
        """Checks that the file still has `count` things of `size` bytes."""
        if count * size > self.end - self.at:
            raise self.fail(f"{what} do not fit into the file; was the download cut short?")

    def skip(self, size: int, what: str) -> int:
        """Moves on and returns where it was."""
        self.room(1, size, f"the {size} bytes of {what}")
        self.at += size
        return self.at - size

    def number(self, form: str, what: str) -> Any:
        return struct.unpack_from(form, self.data, self.skip(struct.calcsize(form), what))[0]

    def string(self, what: str, most: int = MOST) -> str:
        return self.strings(1, what, most)[0]

    def strings(self, count: int, what: str, most: int = MOST) -> list[str]:
        """Reads many strings; one loop without calls, for tokenizers have 100,000."""
        data, at, end, unpack = self.data, self.at, self.end, struct.Struct("<Q").unpack_from
        found = []
        try:
            for _ in range(count):
                [size] = unpack(data, at)
                at += 8
                if size > end - at or size > most:
                    raise self.fail(f"{what} has a string of {size} bytes; at most {most} can be")
                found.append(str(data[at : at + size], "utf-8"))
                at += size
        except struct.error:
            raise self.fail(f"the file ends within {what}; was the download cut short?") from None
        except UnicodeDecodeError:
            raise self.fail(f"{what} has a string that is not UTF-8") from None
        self.at = at
        return found


# By the numbers of gguf.GGUFValueType; 8 is a string, 9 a list.
NUMBERS = {
    0: "<B",
    1: "<b",
    2: "<H",
    3: "<h",
    4: "<I",
    5: "<i",
    6: "<f",
    10: "<Q",
    11: "<q",
    12: "<d",
}
BOOL, STRING, LIST = 7, 8, 9


def _fields(at: _Cursor, count: int) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for index in range(count):
        key = at.string(f"the key of field {index}", LONGEST_KEY)
        if not key or key in found:
            raise at.fail(f"field {show(key)} is {'there twice' if key else 'without a name'}")
        found[key] = _value(at, at.number("<I", show(key)), f"field {show(key)}")
    return found


def _value(at: _Cursor, kind: int, what: str) -> Any:
    if kind in NUMBERS:
        return at.number(NUMBERS[kind], what)
    if kind == BOOL:
        return _bools(at, 1, what)[0].item()
    if kind == STRING:
        return at.string(what)
    if kind != LIST:
        raise at.fail(f"{what} has type {kind}, which is none of GGUF's")
    kind, count = at.number("<I", what), at.number("<Q", what)
    if count > MOST:
        raise at.fail(f"{what} has {count} items; at most {MOST} can be")
    if kind == STRING:
        at.room(count, 8, f"the {count} strings of {what}")
        return at.strings(count, what)
    if kind == BOOL:
        return _bools(at, count, what)
    # Lists of lists have no use and no reader in llama.cpp; nothing here is nested.
    if kind not in NUMBERS:
        raise at.fail(
            f"{what} is a list of type {kind}; numbers, booleans or strings were expected"
        )
    dtype = np.dtype(NUMBERS[kind])
    start = at.skip(count * dtype.itemsize, what)
    return np.frombuffer(at.data, dtype, count, start).copy()


def _bools(at: _Cursor, count: int, what: str) -> np.ndarray:
    values = np.frombuffer(at.data, np.uint8, count, at.skip(count, what))
    if count and values.max() > 1:
        raise at.fail(f"{what} is a boolean of value {values.max()}; 0 or 1 was expected")
    return values.astype(bool)


def _alignment(fields: dict[str, Any], place: Path | str) -> int:
    value = fields.get("general.alignment", ALIGNMENT)
    if type(value) is not int or value < 1 or value & (value - 1):
        raise FormatError(f"{place}: general.alignment={value!r}; a power of two was expected")
    return value


def _tensors(at: _Cursor, count: int, alignment: int) -> dict[str, Entry]:
    described: dict[str, tuple[tuple[int, ...], Any, int, int]] = {}
    for index in range(count):
        name = at.string(f"the name of tensor {index}", LONGEST_NAME)
        if not name or name in described:
            raise at.fail(f"tensor {show(name)} is {'there twice' if name else 'without a name'}")
        described[name] = _tensor(at, f"tensor {show(name)}", alignment)
    data = -(-at.at // alignment) * alignment
    found = {}
    for name, (shape, kind, offset, size) in described.items():
        if data + offset + size > at.end:
            raise at.fail(
                f"tensor {show(name)} ends at byte {data + offset + size} of {at.end}; was the "
                "download cut short?"
            )
        found[name] = Entry(shape, kind, data + offset, size)
    in_order = sorted(found.items(), key=lambda item: item[1].start)
    for (name, entry), (other, following) in pairwise(in_order):
        if entry.start + entry.size > following.start:
            raise at.fail(f"tensors {show(name)} and {show(other)} lie over each other")
    return found


def _tensor(at: _Cursor, what: str, alignment: int) -> tuple[tuple[int, ...], Any, int, int]:
    """Shape, type, offset and size of the tensor at the cursor."""
    from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

    axes = at.number("<I", what)
    if not 1 <= axes <= MOST_AXES:
        raise at.fail(f"{what} has {axes} axes; 1 to {MOST_AXES} were expected")
    shape = tuple(at.number("<Q", what) for _ in range(axes))[::-1]
    number, offset = at.number("<I", what), at.number("<Q", what)
    if number not in GGMLQuantizationType.__members__.values():
        raise at.fail(f"{what} has type {number}, which the gguf package does not know")
    kind = GGMLQuantizationType(number)
    block, block_bytes = GGML_QUANT_SIZES[kind]
    if min(shape) < 1 or shape[-1] % block:
        raise at.fail(
            f"{what} has shape {list(shape)}; positive sizes, and rows of whole blocks of {block} "
            f"for {kind.name}, were expected"
        )
    if offset % alignment:
        raise at.fail(f"{what} has offset {offset}, no multiple of the alignment {alignment}")
    return shape, kind, offset, math.prod(shape) // block * block_bytes


def show(name: str, most: int = 80) -> str:
    """A name from a file, fit for a message: quoted, on one line, not too long."""
    return repr(name if len(name) <= most else name[:most] + "…")
