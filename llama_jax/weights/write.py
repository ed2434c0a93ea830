"""A model's parameters as the tensors of another format, one at a time."""

from collections.abc import Iterator
from typing import Any

import numpy as np

from llama_jax.models.decoder import DecoderLM
from llama_jax.weights.names import Name, Rows
from llama_jax.weights.read import tensors


def export(
    model: DecoderLM, params: dict[str, Any], rows: Rows
) -> Iterator[tuple[Name, np.ndarray]]:
    """Every tensor of a model in a format, in the format's axes, in the parameters' type.

    Args:
      model: its config.
      params: the nested dict {"decoder": ...}, on the host or on devices.
      rows: how the format names and lays out tensors.
    """
    for name in tensors(model, rows):
        weight = params["decoder"]
        for part in name.path.split("/"):
            weight = weight[part]
        yield name, name.theirs(np.asarray(weight if name.layer is None else weight[name.layer]))
