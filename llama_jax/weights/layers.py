"""Stacked layers to single ones: the form in which decoding reads weights without cutting them."""

from dataclasses import replace
from typing import Any

import jax


def one_by_one(model: Any) -> Any:
    """The same model with arrays of its own for each layer of its decoder; see `Stack.scan`."""
    if model.language is not model:
        return replace(model, decoder=one_by_one(model.language))
    return replace(model, stack=replace(model.stack, scan=False))


def unstack(params: dict[str, Any], layers: int) -> dict[str, Any]:
    """Parameters of the stacked model as those of the single one; frees the stacked arrays.

    Those that are of single layers already stay as they are.

    Args:
      params: the nested dict {"decoder": ...}.
      layers: L.
    """
    decoder = dict(params["decoder"])
    stack = dict(decoder["stack"])
    if "layers" not in stack:
        return params
    leaves, tree = jax.tree.flatten(stack.pop("layers"))
    single: list[list[jax.Array]] = [[] for _ in range(layers)]
    for n, leaf in enumerate(leaves):
        leaves[n] = None
        for i in range(layers):
            single[i].append(leaf[i])
        leaf.delete()
    stack |= {f"layer_{i}": jax.tree.unflatten(tree, one) for i, one in enumerate(single)}
    return params | {"decoder": decoder | {"stack": stack}}
