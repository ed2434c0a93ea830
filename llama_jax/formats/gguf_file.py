"""The tensors of a GGUF file: float32, float16, bfloat16 or blocks that gguf turns into numbers.

fields, source = open_file("SmolLM2-135M-Instruct.Q4_1.gguf")
fields["tokenizer.chat_template"]
source.read("token_embd.weight")
"""

import mmap
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np

from llama_jax.errors import FormatError
from llama_jax.formats.gguf import Entry, read_header, show
from llama_jax.formats.source import Source, Tensor

# Types that numpy reads as they are; the others come in blocks.
PLAIN = {"F32": "float32", "F16": "float16"}

# Values that gguf turns at a time, a multiple of every block: with what lies between they stay in a
# core's cache, and a tensor needs its own size in memory and no more.
CHUNK = 2**16


def open_file(path: str | Path) -> tuple[Mapping[str, Any], Source]:
    """The fields of a GGUF file, and its tensors, outermost axis first.

    Fields are int, float, bool, str, list[str], or an array for a list of numbers. The file stays
    mapped into memory; a tensor is read when `source.read` is called.

    Raises:
      FormatError: not a GGUF file, a damaged one, or one of a type of tensors that is not known.
    """
    place = Path(path)
    data = _map(place)
    header = read_header(data, place)
    _check_types(header.tensors, place)
    listed = {
        name: Tensor(entry.shape, _dtype(entry), place) for name, entry in header.tensors.items()
    }

    def read(name: str) -> np.ndarray:
        # Drops what was read before, else all of the file would stay in memory beside the weights;
        # whoever looks again finds it in the file.
        if hasattr(mmap, "MADV_DONTNEED"):
            data.madvise(mmap.MADV_DONTNEED)
        return _array(data, header.tensors[name])

    return MappingProxyType(header.fields), Source(place, listed, read)


def _map(place: Path) -> mmap.mmap:
    if not place.is_file():
        raise FormatError(f"{place} is no file; give the path of a .gguf file")
    try:
        with place.open("rb") as file:
            return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except OSError as error:
        raise FormatError(f"{place} cannot be read ({error.strerror})") from None
    except ValueError:
        raise FormatError(f"{place} is empty") from None


def _dtype(entry: Entry) -> str:
    return PLAIN.get(entry.kind.name) or entry.kind.name.lower()


def _array(data: mmap.mmap, entry: Entry) -> np.ndarray:
    """The values of a tensor; of blocks and bfloat16 as float32."""
    from gguf import GGML_QUANT_SIZES, quants

    stored = np.frombuffer(data, np.uint8, entry.size, entry.start)
    if entry.kind.name in PLAIN:
        return stored.view(PLAIN[entry.kind.name]).reshape(entry.shape)
    block, size = GGML_QUANT_SIZES[entry.kind]
    blocks, values = stored.reshape(-1, size), np.empty((entry.size // size, block), np.float32)
    with np.errstate(all="ignore"):  # `read` refuses what is not finite
        for at in range(0, len(blocks), CHUNK // block):
            row = blocks[at : at + CHUNK // block].reshape(1, -1)
            values[at : at + CHUNK // block] = quants.dequantize(row, entry.kind).reshape(-1, block)
    return values.reshape(entry.shape)


def _check_types(entries: Mapping[str, Entry], place: Path) -> None:
    """Refuses a file with a type that gguf cannot turn into numbers, before any is read."""
    from gguf import GGML_QUANT_SIZES, quants

    first: dict[Any, str] = {}
    for name, entry in entries.items():
        first.setdefault(entry.kind, name)
    for kind, name in first.items():
        try:
            quants.dequantize(np.zeros((1, GGML_QUANT_SIZES[kind][1]), np.uint8), kind)
        except NotImplementedError:
            raise FormatError(
                f"{place}: tensor {show(name)} has type {kind.name}, which cannot be turned into "
                "numbers; convert the file to F16 or Q8_0"
            ) from None
