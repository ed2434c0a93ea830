"""What a family is: all that is particular to one published architecture.

A family is a value, `FAMILY` of a module of this folder. It says in which words others write its
models down: how Hugging Face does, and perhaps GGUF and Meta. What families share stands in
`huggingface`, `gguf` and `names`; its layers are those of all models, put together by `Sizes`.

A family of one's own: a module with a `FAMILY`, and its name in `NAMES` of this package.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from llama_jax.families.gguf import Gguf
from llama_jax.families.names import Notation
from llama_jax.formats.source import Source

if TYPE_CHECKING:
    import numpy as np

    from llama_jax.config import Run


class Meta(Protocol):
    """How a family is written down in Meta's folders; for `families.llama_meta`."""

    @property
    def table(self) -> Notation:
        """The names of tensors."""
        ...

    @property
    def assumed(self) -> tuple[float, float | None, float]:
        """Base of rope, and factor and high of its scaling, where params.json is silent."""
        ...

    def claims(self, params: Mapping[str, Any]) -> bool:
        """Whether a params.json is of this family."""
        ...

    def open(self, folder: str | Path, pickle: bool = False) -> tuple[Any, Source, tuple[str, ...]]:
        """The model of a folder, its tensors, and the names of those that are not read."""
        ...

    def renamed(self, model: Any, name: str, tensor: "np.ndarray") -> "tuple[str, np.ndarray]":
        """A tensor as Hugging Face has it, by a second program than the table of names."""
        ...


@dataclass(frozen=True)
class Family:
    """One published architecture.

    Attributes:
      name: the name of its module.
      about: what its models are made of, in a line.
      huggingface: how the family reads and writes Hugging Face's folders.
      gguf: how it reads and writes GGUF files, or None.
      meta: how it reads Meta's folders, or None.
    """

    name: str
    about: str
    huggingface: Any  # a HuggingFace, or what has the same methods for a model of more parts
    gguf: Gguf | None = None
    meta: Meta | None = None

    def table(self, kind: str) -> Notation:
        """The names of tensors in a format: "huggingface", "gguf" or "meta"."""
        return getattr(self, kind).table


def run(name: str, model: Any) -> "Run":
    """A run that trains a published architecture: on C4, until other data takes its place.

    The tokenizer is that of the weights to begin with (`init_from`).

    Args:
      name: what the preset is called.
      model: the config.
    """
    # Reading weights needs no data, objectives or optimizer.
    from llama_jax.config import File, Run
    from llama_jax.data import LanguageModel, Stream, Tfds
    from llama_jax.objectives import CausalLM
    from llama_jax.optim.optimizer import AdamW, Cosine

    length = min(model.context or 2048, 8192)
    return Run(
        name=name,
        model=model,
        data={"text": Stream(Tfds("c4"), LanguageModel(length), batch=8)},
        objectives={"lm": CausalLM(on="text")},
        optimizer=AdamW(rate=3e-4, schedule=Cosine(warmup=2000)),
        tokenizer=File(),
        dtype="bfloat16",
    )
