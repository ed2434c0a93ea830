"""A model's parameters as a GGUF file that llama.cpp opens.

    write_gguf("mine.gguf", model, params, fields=tokenizer_fields, kind="Q8_0")

One tensor at a time is on the host. The file appears under its name when it is whole: until then it
has another name, and nothing is left of a failure.
"""

import contextlib
import math
import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np

from llama_jax.errors import UserError, nearest
from llama_jax.formats.gguf import ALIGNMENT
from llama_jax.layers.block import Block
from llama_jax.layers.rope import Llama3Rope
from llama_jax.models.decoder import Decoder
from llama_jax.weights import gguf_config, gguf_rope
from llama_jax.weights.names import GGUF, Name
from llama_jax.weights.read import sizes, tensors
from llama_jax.weights.write import export

Kind = Literal["F32", "F16", "Q8_0"]

# general.file_type (gguf.LlamaFileType), and the largest magnitude that a matrix may have: Q8_0
# keeps max / 127 of a block in float16.
KINDS = {"F32": (0, float(np.finfo("f4").max)), "F16": (1, 65_504.0), "Q8_0": (7, 127 * 65_504.0)}


def write_gguf(
    path: str | Path,
    model: Decoder,
    params: Mapping[str, Any],
    fields: Mapping[str, Any] | None = None,
    kind: Kind = "F32",
    progress: Callable[[Iterable[Name]], Iterable[Name]] = iter,
) -> None:
    """Writes a GGUF file of architecture "llama".

    Args:
      path: the file; one that is there is replaced.
      model: the config.
      params: the nested dict {"decoder": ...}, on the host or on devices.
      fields: key-values of a tokenizer, `tokenizer.*`, and what is to be told of the model,
        `general.*`; other keys are left out, for they are the model's. Without a tokenizer
        llama.cpp takes and gives ids only.
      kind: how matrices are stored; norms are float32 always. A matrix whose rows are not whole
        blocks of 32 is F16 in a Q8_0 file, as in those of llama.cpp's own converter.
      progress: wraps the tensors while they are written.

    Raises:
      UserError: a model or a value that the file cannot hold, or a tokenizer of another vocabulary.
    """
    from gguf import GGUFWriter

    if kind not in KINDS:
        raise UserError(
            f"kind {kind!r}; one of {', '.join(KINDS)} was expected{nearest(kind, KINDS)}"
        )
    path = Path(path)
    draft = path.with_name(f"{path.name}.{os.getpid()}.unfinished")
    told = _fields(model, fields or {}, kind)
    writer = GGUFWriter(None, told.pop("general.architecture"))
    for key, value in told.items():
        value, kinds = _typed(key, value)
        writer.add_key_value(key, value, *kinds)
    names = tensors(model, GGUF)
    divisors = _divisors(model)
    if divisors is not None:
        _announce(writer, gguf_rope.TENSOR, divisors.shape, "F32")
    for name in names:
        _announce(writer, name.tensor, name.shape, _kind_of(name.shape, kind))
    try:
        writer.write_header_to_file(draft)
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        if divisors is not None:
            writer.write_tensor_data(divisors)
        for _, (name, tensor) in zip(
            progress(names), export(model, dict(params), GGUF), strict=True
        ):
            writer.write_tensor_data(_stored(name, tensor, _kind_of(name.shape, kind)))
        writer.flush()
        writer.close()
        with draft.open("rb") as file:
            os.fsync(file.fileno())
        os.replace(draft, path)
    except OSError as error:
        raise UserError(f"{path} cannot be written ({error.strerror or error})") from None
    finally:
        with contextlib.suppress(OSError):  # what a full disk has not taken yet
            writer.close()
        draft.unlink(missing_ok=True)


def _fields(model: Decoder, given: Mapping[str, Any], kind: Kind) -> dict[str, Any]:
    from gguf import GGML_QUANT_VERSION

    tokenizer = {key: value for key, value in given.items() if key.startswith("tokenizer.")}
    tokens = tokenizer.get("tokenizer.ggml.tokens")
    if tokens is not None and len(tokens) != model.vocab:
        raise UserError(
            f"the tokenizer has {len(tokens)} tokens, the model {model.vocab}; pad one of "
            "them, for llama.cpp wants as many"
        )
    own = gguf_config.describe(model)
    general = {
        "general.architecture": own["general.architecture"],
        "general.type": "model",
        "general.file_type": KINDS[kind][0],
        "general.quantization_version": GGML_QUANT_VERSION,
        "general.alignment": ALIGNMENT,
    }
    told = {key: value for key, value in given.items() if key.startswith("general.")}
    return general | told | general | own | (tokenizer or {"tokenizer.ggml.model": "no_vocab"})


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


def _divisors(model: Decoder) -> np.ndarray | None:
    [block] = model.stack.pattern
    rope = block.attention.rope if isinstance(block, Block) else None
    return gguf_rope.divisors(rope, sizes(model)["H"]) if isinstance(rope, Llama3Rope) else None


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


def _stored(name: Name, tensor: np.ndarray, kind: Kind) -> np.ndarray:
    """A tensor as the file holds it."""
    from gguf import GGMLQuantizationType, quants

    tensor = np.ascontiguousarray(tensor, np.float32)
    largest = max(abs(tensor.min()), abs(tensor.max()))
    if not largest <= KINDS[kind][1]:  # NaN neither
        raise UserError(
            f"tensor {name.tensor!r} holds {largest:g}, beyond the {KINDS[kind][1]:g} of {kind}"
        )
    return quants.quantize(tensor, GGMLQuantizationType[kind])
