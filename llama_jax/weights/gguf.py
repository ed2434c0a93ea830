"""GGUF files of the architectures of our families, as llama.cpp and its kin read them.

    file = open_gguf("SmolLM2-135M-Instruct.Q4_1.gguf")
    params = read(file.model, file.source, file.table, unused=file.unused)
    file.fields["tokenizer.chat_template"]

The model comes from the file alone, and its tensors have been checked against it.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llama_jax import families
from llama_jax.families import gguf_rope
from llama_jax.families.base import Family
from llama_jax.families.names import Table, tensors
from llama_jax.formats.gguf_file import open_file
from llama_jax.formats.gguf_scales import scaled
from llama_jax.formats.source import Source
from llama_jax.models.decoder import Decoder

# Tensors that hold no weights: the model's config has taken what they say.
UNUSED = gguf_rope.TENSORS


@dataclass(frozen=True)
class Gguf:
    """An open GGUF file.

    Attributes:
      place: the path of the file.
      fields: key-values of the file; see `open_file`.
      family: whose architecture it names.
      model: what its fields and its tensors describe.
      source: tensors of the file, outermost axis first.
      table: their names.
      unused: tensors that may be there and are no weights; for `read`.
    """

    place: Path
    fields: Mapping[str, Any]
    family: Family
    model: Decoder
    source: Source
    table: Table
    unused: tuple[str, ...]


def open_gguf(path: str | Path) -> Gguf:
    """Opens a GGUF file and checks its header, its config and the shapes of its tensors.

    The file stays mapped into memory; a tensor is read when `source.read` is called.

    Raises:
      FormatError: not a GGUF file, a damaged one, or one of a model or a type that is not known.
    """
    place = Path(path)
    fields, source = open_file(place)
    source = scaled(source)
    family = families.of_gguf(fields, place)
    words = family.gguf
    assert words is not None
    shapes = {name: tensor.shape for name, tensor in source.tensors.items()}
    arrays = {name: source.read(name) for name in UNUSED if name in shapes}
    model = words.model(fields, shapes, arrays, place)
    source.check({name.tensor: name.shape for name in tensors(model, words.table)}, UNUSED)
    return Gguf(place, fields, family, model, source, words.table, UNUSED)
