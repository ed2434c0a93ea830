"""Tensors of a file that hold several of our weights side by side, along their last axis.

A table names a part by its place: "experts.gate_up_proj[0]" is the first half of the tensor
"experts.gate_up_proj", and [1] the second. `parts` shows a file so, `joined` puts it together.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from itertools import groupby

import numpy as np

from llama_jax.families.names import Name, fused
from llama_jax.formats.source import Source, Tensor


def parts(source: Source, names: Iterable[str]) -> Source:
    """A file with the parts of tensors that a model asks for in place of these.

    A part is cut out when it is read. A tensor that does not divide stays as it is.

    Args:
      source: the file.
      names: what the model's table asks for.
    """
    asked: dict[str, list[str]] = {}
    for name in names:
        if name != fused(name):
            asked.setdefault(fused(name), []).append(name)
    tensors = dict(source.tensors)
    places: dict[str, tuple[str, int, int]] = {}
    for whole, mine in asked.items():
        found = tensors.get(whole)
        if found is None or not found.shape or found.shape[-1] % len(mine):
            continue
        size = found.shape[-1] // len(mine)
        del tensors[whole]
        for i, name in enumerate(mine):
            tensors[name] = Tensor((*found.shape[:-1], size), found.dtype, found.file)
            places[name] = whole, i * size, (i + 1) * size

    def read(name: str) -> np.ndarray:
        if name not in places:
            return source.read(name)
        whole, start, stop = places[name]
        return source.read(whole)[..., start:stop]

    return Source(source.place, tensors, read)


def wholes(names: Iterable[Name]) -> list[Name]:
    """The tensors of a file, of names in the order of `names.tensors`."""
    return [_whole(list(group)) for _, group in groupby(names, lambda name: fused(name.tensor))]


def joined(pairs: Iterator[tuple[Name, np.ndarray]]) -> Iterator[tuple[Name, np.ndarray]]:
    """Tensors as a file has them, of those that a table names, in the order of `names.tensors`."""
    for _, group in groupby(pairs, lambda pair: fused(pair[0].tensor)):
        names, tensors = zip(*group, strict=True)
        one = tensors[0] if len(tensors) == 1 else np.concatenate(tensors, axis=-1)
        yield _whole(list(names)), one


def joined_state(state: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Tensors as a file has them, of those that it may be called by parts, in any order."""
    found: dict[str, list[np.ndarray]] = {}
    for name in sorted(state):
        found.setdefault(fused(name), []).append(state[name])
    return {
        name: tensors[0] if len(tensors) == 1 else np.concatenate(tensors, axis=-1)
        for name, tensors in found.items()
    }


def _whole(names: list[Name]) -> Name:
    """The tensor of these names, which are one tensor's; of parts its path says only the first."""
    *rows, last = names[0].shape
    tensor, shape = fused(names[0].tensor), (*rows, last * len(names))
    return replace(names[0], tensor=tensor, shape=shape)
