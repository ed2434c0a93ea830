"""A model's parameters as the tensors of another format, one at a time."""

import dataclasses
from collections.abc import Iterator
from typing import Any

import numpy as np

from llama_jax.families.names import Name, Notation, tensors
from llama_jax.weights.read import not_finite


def export(
    model: Any, params: dict[str, Any], table: Notation
) -> Iterator[tuple[Name, np.ndarray]]:
    """Every tensor of a model in a format, in the format's axes, in the parameters' type.

    Args:
      model: config of the model.
      params: the nested dict {"decoder": ...}, on the host or on devices, or `Unread` weights.
      table: how the format names and lays out tensors.
    """
    for name in tensors(model, table):
        weight: Any = params
        for part in name.path.split("/"):
            weight = weight[part]
        yield name, name.theirs(np.asarray(weight if name.layer is None else weight[name.layer]))


def cast(name: Name, tensor: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """The tensor in another type and in one piece.

    Raises:
      FormatError: a value that is not finite in that type.
    """
    with np.errstate(over="ignore", invalid="ignore"):
        found = np.ascontiguousarray(tensor, dtype)
    if not np.isfinite(found).all():
        raise not_finite(name.tensor, dtype)
    return found


def inference(model: Any) -> Any:
    """The model without what only matters in training, or to the compiler."""
    if model.language is not model:
        return dataclasses.replace(model, decoder=inference(model.language))
    stack = model.stack
    blocks = tuple(dataclasses.replace(block, dropout=0.0) for block in stack.pattern)
    stack = dataclasses.replace(stack, pattern=blocks, remat="none")
    return dataclasses.replace(model, stack=stack)
