"""What layers sow beside their vectors, put together."""

import re
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp

# What a layer may sow: "losses" for training, "intermediates" for whoever looks inside.
SOWN = ("losses", "intermediates")


def sown(losses: Mapping[str, Any]) -> dict[str, jax.Array]:
    """What the layers of a stack sowed last, by name: [layers, ...]."""
    found: dict[str, list[jax.Array]] = {}
    for name, values in _leaves(losses):
        found.setdefault(name, []).append(jnp.asarray(values[-1]))
    if "layers" in losses:  # each is [L, ...], of one block of the pattern
        return {name: _in_turn(values) for name, values in found.items()}
    return {name: jnp.stack(values) for name, values in found.items()}


def every(losses: Mapping[str, Any]) -> dict[str, list[jax.Array]]:
    """All that a whole model sowed, by name: of every stack, in every call."""
    found: dict[str, list[jax.Array]] = {}
    for name, values in _leaves(losses):
        found.setdefault(name, []).extend(values)
    return found


def _leaves(tree: Mapping[str, Any]) -> Iterator[tuple[str, tuple[jax.Array, ...]]]:
    """Names and values, layer_10 after layer_9."""
    for name in sorted(tree, key=lambda name: [int(n) for n in re.findall(r"\d+", name)]):
        value = tree[name]
        if isinstance(value, Mapping):
            yield from _leaves(value)
        else:
            yield name, value if isinstance(value, tuple) else (value,)


def _in_turn(values: list[jax.Array]) -> jax.Array:
    """Values of blocks, each [L, ...], in the order of the layers."""
    both = jnp.stack(values, axis=1)
    return both.reshape(-1, *both.shape[2:])
