"""One .safetensors file: its header read and checked, one tensor read, a file written.

    u64 little endian   length of the header
    JSON                {"name": {"dtype": "BF16", "shape": [2, 3], "data_offsets": [0, 12]}, ...}
    data                tensor after tensor, without holes; offsets count from here

Tensors are read with plain reads, not through a memory map: a map's pages count as the process's
memory for as long as the file is open, and one that shrinks while it is mapped kills the process.
"""

import json
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from llama_jax.errors import FormatError

# Its names of the types that hold weights.
TYPES = {
    "F64": np.dtype(np.float64),
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
}
CODES = {dtype: code for code, dtype in TYPES.items()}
# Its names of types that hold parts of quantised weights (see `quantised`), or notes of a program.
PACKED = {
    "F8_E4M3": np.dtype(ml_dtypes.float8_e4m3fn),
    "F8_E5M2": np.dtype(ml_dtypes.float8_e5m2),
    "F8_E8M0": np.dtype(ml_dtypes.float8_e8m0fnu),
    **{f"I{8 * n}": np.dtype(f"<i{n}") for n in (1, 2, 4, 8)},
    **{f"U{8 * n}": np.dtype(f"<u{n}") for n in (1, 2, 4, 8)},
    "BOOL": np.dtype(np.bool_),
}
READ = TYPES | PACKED
HEADER_BYTES = 100_000_000  # the format's own limit
# XLA on a CPU takes an array that lies on such a boundary as it is, others it copies.
ALIGNMENT = 64


@dataclass(frozen=True)
class Entry:
    """Where a tensor is: `start` counts from the beginning of the file."""

    shape: tuple[int, ...]
    dtype: np.dtype
    start: int


def read_header(path: Path) -> dict[str, Entry]:
    """The tensors of a file by name.

    Raises:
      FormatError: what is wrong, with the tensor's name; nothing is allocated that the file has no
        bytes for.
    """
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if not 2 <= length <= min(size - 8, HEADER_BYTES):
                raise _broken(path, f"a header of {length:,} bytes in a file of {size:,}")
            header = json.loads(file.read(length).decode(), object_pairs_hook=_once)
    except OSError as error:
        raise FormatError(f"{path} cannot be read ({error.strerror})") from None
    except (ValueError, RecursionError) as error:
        if isinstance(error, FormatError):
            raise
        raise _broken(path, f"its header is no JSON: {type(error).__name__}") from None
    if not isinstance(header, dict):
        raise _broken(path, "its header is no object")
    header.pop("__metadata__", None)
    entries, reached = {}, 8 + length
    spans = sorted((_span(path, name, about), name) for name, about in header.items())
    for (begin, end), name in spans:
        if 8 + length + begin != reached:
            raise _broken(path, f"tensor {name[:80]!r} does not begin where the one before ends")
        entries[name] = _entry(path, name, header[name], reached, end - begin)
        reached += end - begin
    if reached != size:
        raise _broken(path, f"{reached:,} bytes are described and {size:,} are there")
    return {name: entries[name] for name in header}


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a name twice")
    return found


def _span(path: Path, name: str, about: Any) -> tuple[int, int]:
    span = about.get("data_offsets") if isinstance(about, dict) else None
    if not (isinstance(span, list) and len(span) == 2 and all(type(i) is int for i in span)):
        raise _broken(path, f"tensor {name[:80]!r} has no data_offsets")
    return span[0], span[1]


def _entry(path: Path, name: str, about: dict[str, Any], start: int, nbytes: int) -> Entry:
    code, shape = about.get("dtype"), about.get("shape")
    if not isinstance(code, str) or code not in READ:
        raise FormatError(
            f"{path}: tensor {name[:80]!r} is of type {str(code)[:20]!r}; {', '.join(READ)} can "
            "be read"
        )
    if not isinstance(shape, list) or not all(type(n) is int and 0 <= n < 2**63 for n in shape):
        raise _broken(path, f"tensor {name[:80]!r} has no shape")
    if len(shape) > 8 or math.prod(shape) * READ[code].itemsize != nbytes:
        raise _broken(path, f"tensor {name[:80]!r} has {nbytes:,} bytes and shape {shape[:8]}")
    return Entry(tuple(shape), READ[code], start)


def _broken(path: Path, what: str) -> FormatError:
    return FormatError(f"{path} is not a whole safetensors file ({what}); was it cut short?")


def read_tensor(path: Path, entry: Entry) -> np.ndarray:
    """The tensor, in memory of its own."""
    size = math.prod(entry.shape) * entry.dtype.itemsize
    array = aligned(size)
    try:
        with path.open("rb", buffering=0) as file:
            file.seek(entry.start)
            view, done = array.data, 0
            while done < size and (count := file.readinto(view[done:])):
                done += count
    except OSError as error:
        raise FormatError(f"{path} cannot be read ({error.strerror})") from None
    if done < size:
        raise FormatError(f"{path} became shorter while it was read; is it still being written?")
    return array.view(entry.dtype).reshape(entry.shape)


def aligned(size: int) -> np.ndarray:
    """So many bytes, on a boundary on which jax need not copy them."""
    space = np.empty(size + ALIGNMENT, np.uint8)
    start = -space.ctypes.data % ALIGNMENT
    return space[start : start + size]


def write_file(
    path: Path,
    tensors: Iterable[tuple[str, tuple[int, ...]]],
    dtype: np.dtype,
    arrays: Iterator[np.ndarray],
) -> None:
    """Writes a file, one tensor in memory at a time.

    Args:
      path: the file.
      tensors: name and shape of each, in order.
      dtype: what all of them are stored in.
      arrays: the tensors; as many are taken as are named.
    """
    # transformers opens only files that say for which framework they were written.
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    reached, shapes = 0, []
    for name, shape in tensors:
        end = reached + math.prod(shape) * dtype.itemsize
        about = {"dtype": CODES[dtype], "shape": list(shape), "data_offsets": [reached, end]}
        header[name], reached = about, end
        shapes.append(shape)
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for shape, array in zip(shapes, arrays, strict=False):
            assert array.shape == shape and array.dtype == dtype
            file.write(array.reshape(-1).view(np.uint8).data)
