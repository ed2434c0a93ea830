"""A language model inside a larger one of Hugging Face's, such as one that sees.

Its config.json has the model's own as a field, and the names of its tensors begin with a word.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llama_jax.errors import FormatError
from llama_jax.formats.source import Source


@dataclass(frozen=True)
class Outer:
    """The larger model.

    Attributes:
      model_type: the name in config.json.
      architecture: the class of transformers.
      field: where the language model's config is.
      prefix: what names of the language model's tensors begin with.
      others: what those of the other parts begin with; they are not read.
    """

    model_type: str
    architecture: str
    field: str
    prefix: str
    others: tuple[str, ...]

    def names(self, config: Mapping[str, Any]) -> bool:
        """Whether a config.json is of the larger model."""
        return config.get("model_type") == self.model_type

    def inner(self, config: Mapping[str, Any], place: Path | str) -> dict[str, Any]:
        """The language model's part of its config.json, and how tensors are packed.

        Raises:
          FormatError: it has none.
        """
        part = config.get(self.field)
        if not isinstance(part, dict):
            raise FormatError(
                f"{place}: {self.field} is missing; model_type={self.model_type!r} keeps the sizes "
                "of its language model there"
            )
        packed = {name: config[name] for name in ("quantization_config",) if name in config}
        return packed | part

    def source(self, source: Source) -> Source:
        """Its tensors, the language model's under the names that they have by themselves."""
        named = {name.removeprefix(self.prefix): name for name in source.tensors}
        tensors = {name: source.tensors[theirs] for name, theirs in named.items()}
        return Source(source.place, tensors, lambda name: source.read(named[name]))
