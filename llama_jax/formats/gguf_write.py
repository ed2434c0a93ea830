"""Writing a GGUF file: fields, and tensors of float32, float16 or 8-bit blocks, one at a time.

The file appears under its name when it is whole: until then it has another name, and nothing is
left of a failure.
"""

import contextlib
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from llama_jax.errors import UserError, nearest
from llama_jax.files import whole_file

Kind = Literal["F32", "F16", "Q8_0"]

# general.file_type (gguf.LlamaFileType), and the largest magnitude that a matrix may have: Q8_0
# keeps max / 127 of a block in float16.
KINDS = {"F32": (0, float(np.finfo("f4").max)), "F16": (1, 65_504.0), "Q8_0": (7, 127 * 65_504.0)}


def check_kind(kind: str) -> None:
    """Checks the type of tensors that a file is to be written in.

    Raises:
      UserError: none of `KINDS`.
    """
    if kind not in KINDS:
        raise UserError(
            f"kind {kind!r}; one of {', '.join(KINDS)} was expected{nearest(kind, KINDS)}"
        )


def write_file(
    path: str | Path,
    fields: Mapping[str, Any],
    shapes: Sequence[tuple[str, tuple[int, ...]]],
    arrays: Iterable[np.ndarray],
    kind: Kind = "F32",
) -> None:
    """Writes a file; one that is there is replaced.

    Args:
      path: the file.
      fields: key-values, with general.architecture.
      shapes: names and shapes of the tensors, in order.
      arrays: their values, in the same order.
      kind: how matrices are stored; vectors are float32 always. A matrix whose rows are not whole
        blocks of 32 is F16 in a Q8_0 file, as in those of llama.cpp's own converter.

    Raises:
      UserError: a value that the file cannot hold, or a disk that cannot be written.
    """
    from gguf import GGUFWriter

    given = dict(fields)
    writer = GGUFWriter(None, given.pop("general.architecture"))
    for key, value in given.items():
        value, kinds = _typed(key, value)
        writer.add_key_value(key, value, *kinds)
    for name, shape in shapes:
        _announce(writer, name, shape, _kind_of(shape, kind))
    try:
        with whole_file(path) as draft, contextlib.ExitStack() as closing:
            closing.callback(_close, writer)
            writer.write_header_to_file(draft)
            writer.write_kv_data_to_file()
            writer.write_ti_data_to_file()
            for (name, shape), array in zip(shapes, arrays, strict=True):
                writer.write_tensor_data(_stored(name, array, _kind_of(shape, kind)))
            writer.flush()
            writer.close()
            with draft.open("rb") as file:
                os.fsync(file.fileno())
    except OSError as error:
        raise UserError(f"{path} cannot be written ({error.strerror or error})") from None


def _close(writer: Any) -> None:
    with contextlib.suppress(OSError):  # what a full disk has not taken yet
        writer.close()


def _typed(key: str, value: Any) -> tuple[Any, tuple[Any, ...]]:
    """A value as GGUFWriter takes it, and its type, with the item's for a list."""
    from gguf import GGUFValueType as Type

    scalars = {bool: Type.BOOL, int: Type.UINT32, float: Type.FLOAT32, str: Type.STRING}
    items = {bool: Type.BOOL, int: Type.INT32, float: Type.FLOAT32, str: Type.STRING}
    if isinstance(value, np.ndarray | np.generic):
        value = value.tolist()
    if type(value) in scalars:
        if type(value) is int and not 0 <= value < 2**32:
            raise UserError(f"{key}={value}: a number from 0 to 2^32 - 1 was expected")
        return value, (scalars[type(value)],)
    listed = list(value) if isinstance(value, list | tuple) else []
    kinds = {type(item) for item in listed}
    if len(kinds) != 1 or not kinds <= set(items):
        raise UserError(f"{key}: text, a number, or a list of one type of them was expected")
    if kinds == {int} and not -(2**31) <= min(listed) <= max(listed) < 2**31:
        raise UserError(f"{key}: a list of 32-bit numbers was expected")
    return listed, (Type.ARRAY, items[kinds.pop()])


def _kind_of(shape: tuple[int, ...], kind: Kind) -> Kind:
    if len(shape) == 1:
        return "F32"
    return "F16" if kind == "Q8_0" and shape[-1] % 32 else kind


def _announce(writer: Any, name: str, shape: tuple[int, ...], kind: Kind) -> None:
    from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

    block, size = GGML_QUANT_SIZES[GGMLQuantizationType[kind]]
    bytes_ = math.prod(shape) // block * size
    # Only for uint8 would the writer take the shape for one of bytes.
    writer.add_tensor_info(name, shape, np.dtype("f4"), bytes_, GGMLQuantizationType[kind])


def _stored(name: str, tensor: np.ndarray, kind: Kind) -> np.ndarray:
    """A tensor as the file holds it."""
    from gguf import GGMLQuantizationType, quants

    tensor = np.ascontiguousarray(tensor, np.float32)
    largest = max(abs(tensor.min()), abs(tensor.max()))
    if not largest <= KINDS[kind][1]:  # NaN neither
        raise UserError(
            f"tensor {name!r} holds {largest:g}, beyond the {KINDS[kind][1]:g} of {kind}"
        )
    return quants.quantize(tensor, GGMLQuantizationType[kind])
