"""Tensors of a file that hold several of our weights, one after the other along an axis.

A table names a part by its place: "experts.gate_up_proj[0]" is the first part of the tensor
"experts.gate_up_proj" along its last axis, where all are as large, and "embed[rows 1]" the second
along its first. `parts` shows a file so, `joined` puts it together.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from itertools import groupby

import numpy as np

from llama_jax.families.names import Name, fused
from llama_jax.formats.source import Source, Tensor


def parts(source: Source, names: Iterable[Name]) -> Source:
    """A file with the parts of tensors that a model asks for in place of these.

    A part is cut out when it is read. A tensor that does not divide stays as it is.

    Args:
      source: the file.
      names: what the model's table asks for.
    """
    asked: dict[str, list[Name]] = {}
    for name in names:
        if name.tensor != fused(name.tensor):
            asked.setdefault(fused(name.tensor), []).append(name)
    tensors = dict(source.tensors)
    places: dict[str, tuple[str, tuple[slice, ...]]] = {}
    for whole, mine in asked.items():
        found = tensors.get(whole)
        if found is None or (sizes := _sizes(found.shape, mine)) is None:
            continue
        del tensors[whole]
        axis, start = _axis(mine[0]) % len(found.shape), 0
        for name, size in zip(mine, sizes, strict=True):
            shape = list(found.shape)
            shape[axis] = size
            tensors[name.tensor] = Tensor(tuple(shape), found.dtype, found.file)
            place = (*[slice(None)] * axis, slice(start, start + size))
            places[name.tensor] = whole, place
            start += size

    def read(name: str) -> np.ndarray:
        if name not in places:
            return source.read(name)
        whole, place = places[name]
        return source.read(whole)[place]

    return Source(source.place, tensors, read)


def _axis(name: Name) -> int:
    return 0 if "[rows " in name.tensor else -1


def _sizes(shape: tuple[int, ...], names: list[Name]) -> list[int] | None:
    """How long each part is along the axis, or None if a tensor of this shape has no such parts."""
    if not shape:
        return None
    axis = _axis(names[0])
    if axis:
        size, rest = divmod(shape[axis], len(names))
        return None if rest else [size] * len(names)
    later = [name.shape[0] for name in names[1:]]  # the first is what is left
    first = shape[0] - sum(later)
    return [first, *later] if first > 0 else None


def wholes(names: Iterable[Name]) -> list[Name]:
    """The tensors of a file, of names in the order of `names.tensors`."""
    return [_whole(list(group)) for _, group in groupby(names, lambda name: fused(name.tensor))]


def joined(pairs: Iterator[tuple[Name, np.ndarray]]) -> Iterator[tuple[Name, np.ndarray]]:
    """Tensors as a file has them, of those that a table names, in the order of `names.tensors`."""
    for _, group in groupby(pairs, lambda pair: fused(pair[0].tensor)):
        names, tensors = zip(*group, strict=True)
        one = tensors[0] if len(tensors) == 1 else np.concatenate(tensors, axis=_axis(names[0]))
        yield _whole(list(names)), one


def joined_state(state: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Tensors as a file has them, of those that it may be called by parts, in any order."""
    found: dict[str, list[str]] = {}
    for name in sorted(state):
        found.setdefault(fused(name), []).append(name)
    return {
        whole: np.concatenate(
            [state[name] for name in names], axis=0 if "[rows " in names[0] else -1
        )
        if names != [whole]
        else state[whole]
        for whole, names in found.items()
    }


def _whole(names: list[Name]) -> Name:
    """The tensor of these names, which are one tensor's; of parts its path says only the first."""
    if len(names) == 1:
        return names[0]
    axis, shape = _axis(names[0]), list(names[0].shape)
    shape[axis] = sum(name.shape[axis] for name in names)
    return replace(names[0], tensor=fused(names[0].tensor), shape=tuple(shape))
