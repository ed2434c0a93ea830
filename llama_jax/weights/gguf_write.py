"""A model's parameters as a GGUF file that llama.cpp opens.

    write_gguf("mine.gguf", model, params, fields=tokenizer_fields, kind="Q8_0")

One tensor at a time is on the host.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from llama_jax import families
from llama_jax.errors import UserError
from llama_jax.families.base import Family
from llama_jax.families.gguf import Gguf
from llama_jax.families.names import Name, tensors
from llama_jax.formats.gguf import ALIGNMENT
from llama_jax.formats.gguf_write import KINDS, Kind, check_kind, write_file
from llama_jax.models.decoder import Decoder
from llama_jax.weights.write import export, inference


def write_gguf(
    path: str | Path,
    model: Decoder,
    params: Mapping[str, Any],
    fields: Mapping[str, Any] | None = None,
    kind: Kind = "F32",
    progress: Callable[[Iterable[Name]], Iterable[Name]] = iter,
    family: Family | None = None,
) -> None:
    """Writes a GGUF file.

    Args:
      path: the file; one that is there is replaced.
      model: the config.
      params: the nested dict {"decoder": ...}, on the host or on devices.
      fields: key-values of a tokenizer, `tokenizer.*`, and what is to be told of the model,
        `general.*`; other keys are left out, for they are the model's. Without a tokenizer
        llama.cpp takes and gives ids only.
      kind: how matrices are stored; see `formats.gguf_write.write_file`.
      progress: wraps the tensors while they are written.
      family: whose model it is; found by what it has if it is not given.

    Raises:
      UserError: a model or a value that the file cannot hold, or a tokenizer of another vocabulary.
    """
    check_kind(kind)
    words = families.describing(inference(model), "gguf", family).gguf
    assert words is not None
    told = _fields(words, model, fields or {}, kind)
    names, others = tensors(model, words.table), words.arrays(model)

    def arrays() -> Iterator[np.ndarray]:
        yield from others.values()
        pairs = export(model, dict(params), words.table)
        for _, (_, tensor) in zip(progress(names), pairs, strict=True):
            yield tensor

    shapes = [(name.tensor, name.shape) for name in names]
    shapes = [*((name, array.shape) for name, array in others.items()), *shapes]
    write_file(path, told, shapes, arrays(), kind)


def _fields(words: Gguf, model: Decoder, given: Mapping[str, Any], kind: Kind) -> dict[str, Any]:
    from gguf import GGML_QUANT_VERSION

    tokenizer = {key: value for key, value in given.items() if key.startswith("tokenizer.")}
    tokens = tokenizer.get("tokenizer.ggml.tokens")
    if tokens is not None and len(tokens) != model.vocab:
        raise UserError(
            f"the tokenizer has {len(tokens)} tokens, the model {model.vocab}; pad one of "
            "them, for llama.cpp wants as many"
        )
    own = words.fields(model)
    general = {
        "general.architecture": own["general.architecture"],
        "general.type": "model",
        "general.file_type": KINDS[kind][0],
        "general.quantization_version": GGML_QUANT_VERSION,
        "general.alignment": ALIGNMENT,
    }
    told = {key: value for key, value in given.items() if key.startswith("general.")}
    return general | told | general | own | (tokenizer or {"tokenizer.ggml.model": "no_vocab"})
