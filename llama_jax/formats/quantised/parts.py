"""The tensors of one module, and what a scheme and a packing are."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from llama_jax.errors import FormatError
from llama_jax.formats.source import Tensor


@dataclass(frozen=True)
class Parts:
    """What stands in a checkpoint under one name, such as model.layers.0.mlp.up_proj.

    Attributes:
      module: the name.
      tensors: by what stands behind the name, as "qweight" or "weight_scale".
      load: such a word -> the tensor.
    """

    module: str
    tensors: Mapping[str, Tensor]
    load: Callable[[str], np.ndarray]

    def __contains__(self, part: str) -> bool:
        return part in self.tensors

    def kind(self, part: str) -> str:
        """The type of a tensor, "" if it is not there."""
        return self.tensors[part].dtype if part in self.tensors else ""

    def matrix(self, part: str, kinds: Iterable[str]) -> tuple[int, int]:
        """The shape of a matrix that must be there.

        Raises:
          FormatError: it is not there, has another type, or is no matrix.
        """
        self.check(part, kinds)
        if len(shape := self.tensors[part].shape) != 2:
            raise self.wrong(part, f"has shape {list(shape)}; a matrix was expected")
        return shape[0], shape[1]

    def check(self, part: str, kinds: Iterable[str], *shapes: tuple[int, ...]) -> None:
        """Checks that a tensor is there, with one of these types, and one of these shapes if any.

        Raises:
          FormatError: it is not.
        """
        kinds = tuple(kinds)
        if part not in self.tensors:
            any_file = next(iter(self.tensors.values())).file
            raise FormatError(
                f"{any_file}: tensor {self._name(part)!r} is missing beside {self._others()}; "
                "look for another file of the checkpoint"
            )
        found = self.tensors[part]
        if found.dtype not in kinds:
            raise self.wrong(part, f"is of type {found.dtype}; {' or '.join(kinds)} was expected")
        if shapes and found.shape not in shapes:
            wanted = " or ".join(dict.fromkeys(str(list(shape)) for shape in shapes))
            raise self.wrong(part, f"has shape {list(found.shape)}; {wanted} was expected")

    def wrong(self, part: str, what: str) -> FormatError:
        """An error about one of the tensors, which is there."""
        return FormatError(f"{self.tensors[part].file}: tensor {self._name(part)!r} {what}")

    def _name(self, part: str) -> str:
        return f"{self.module}.{part}"[:200]

    def _others(self) -> str:
        return ", ".join(f".{part}" for part in self.tensors)


class Packing(Protocol):
    """How one matrix is packed; a type for each way, a value for each matrix."""

    @property
    def name(self) -> str:
        """What such a matrix is called in a message."""
        ...

    @property
    def shape(self) -> tuple[int, int]:
        """Of the matrix: out, in."""
        ...

    def expand(self, parts: Parts) -> np.ndarray:
        """The matrix as numbers."""
        ...


class Scheme(Protocol):
    """How a checkpoint is quantised: what its `quantization_config` says."""

    @property
    def parts(self) -> tuple[str, ...]:
        """Words behind a module's name of tensors that a packed matrix is made of."""
        ...

    @property
    def dropped(self) -> tuple[str, ...]:
        """Words of tensors that are about activations, which nobody reads."""
        ...

    def packing(self, parts: Parts) -> Packing | None:
        """How a module's matrix is packed, or None if it is plain.

        Raises:
          FormatError: a tensor that is missing, or of another type or shape.
        """
        ...
