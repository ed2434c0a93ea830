"""A source of packed tensors, shown as one of plain tensors."""

from collections.abc import Iterable, Mapping

import numpy as np

from llama_jax.errors import FormatError
from llama_jax.formats.quantised.parts import Packing, Parts, Scheme
from llama_jax.formats.safetensors import TYPES
from llama_jax.formats.source import Source, Tensor

WEIGHT, BIAS = "weight", ".bias"


def expanded(source: Source, scheme: Scheme | None) -> Source:
    """The source with `MODULE.weight` in place of what it is packed in; itself without a scheme.

    Shapes are those of the expanded matrices. Nothing is expanded before it is read, and then one
    tensor is.

    Raises:
      FormatError: a tensor that a packed matrix needs is missing, or of another type or shape.
    """
    if scheme is None:
        return source
    tensors: dict[str, Tensor] = {}
    packed: dict[str, tuple[Packing, Parts]] = {}
    for module, names in _modules(source.tensors, scheme).items():
        parts = _parts(source, module, names)
        packing = scheme.packing(parts) if names else None
        if packing is None:
            _check_plain(parts)
            tensors |= {name: source.tensors[name] for name in names.values()}
            continue
        name = f"{module}.{WEIGHT}"
        file = next(iter(parts.tensors.values())).file
        tensors[name] = Tensor(packing.shape, packing.name, file)
        packed[name] = packing, parts

    def read(name: str) -> np.ndarray:
        if name not in packed:
            return source.read(name)
        packing, parts = packed[name]
        return packing.expand(parts)

    return Source(source.place, tensors, read)


def idle_biases(source: Source, wanted: Iterable[str]) -> tuple[str, ...]:
    """Biases of zeros beside packed matrices of a model without biases, as AutoGPTQ wrote them.

    Args:
      source: what `expanded` gave.
      wanted: names of the tensors that the model has.
    """
    known = set(wanted)
    plain = {dtype.name for dtype in TYPES.values()}

    def idle(name: str) -> bool:
        matrix = source.tensors.get(name.removesuffix(BIAS) + "." + WEIGHT)
        packed = matrix is not None and matrix.dtype not in plain
        return packed and name not in known and not source.read(name).any()

    return tuple(name for name in source.tensors if name.endswith(BIAS) and idle(name))


def _modules(tensors: Mapping[str, Tensor], scheme: Scheme) -> dict[str, dict[str, str]]:
    """The tensors of every module: word behind its name -> whole name."""
    # The longest first: "weight.absmax" is a word, and so is "weight".
    words = sorted({WEIGHT, *scheme.parts}, key=len, reverse=True)
    found: dict[str, dict[str, str]] = {}
    for name in tensors:
        word = next((word for word in words if name.endswith("." + word)), None)
        if word is not None:
            found.setdefault(name.removesuffix("." + word), {})[word] = name
        elif not name.endswith(tuple("." + word for word in scheme.dropped)):
            # A bias, or what nobody knows: a module of its own, by its whole name.
            found[name] = {"": name}
    return found


def _parts(source: Source, module: str, names: dict[str, str]) -> Parts:
    tensors = {word: source.tensors[name] for word, name in names.items()}
    return Parts(module, tensors, lambda word: source.read(names[word]))


def _check_plain(parts: Parts) -> None:
    """Refuses what would be read past: a scale beside a matrix that needs none."""
    extra = [part for part in parts.tensors if part not in (WEIGHT, "")]
    if extra:
        beside = f"{parts.kind(WEIGHT)} weight" if WEIGHT in parts else "no weight"
        raise FormatError(
            f"{parts.tensors[extra[0]].file}: tensor {parts.module[:150]}.{extra[0]} stands beside "
            f"{beside}, where a quantised one was expected; is a file of the checkpoint missing?"
        )
