"""Frozen weights: no gradient, no moments, no step.

A group with a rate of 0 freezes (`Group`). Multiplying their steps by 0 would do, and cost as much
as learning: a frozen language model's gradients are half of a step's work, its moments twice its
memory.
"""

from typing import Any

import jax
import jax.numpy as jnp
import optax


def of_trained(trains: Any, tree: Any) -> Any:
    """The same tree with nothing in the places of what is frozen.

    Args:
      trains: a tree of bool, or None if nothing is frozen.
      tree: anything of the parameters' structure.
    """
    if trains is None:
        return tree
    return jax.tree.map(lambda learns, x: x if learns else optax.MaskedNode(), trains, tree)


def held(trains: Any, params: Any) -> Any:
    """The parameters, those that are frozen as constants for whoever differentiates."""
    return jax.tree.map(lambda learns, p: p if learns else jax.lax.stop_gradient(p), trains, params)


def trained_alone(chain: optax.GradientTransformation, trains: Any) -> optax.GradientTransformation:
    """The chain over what learns; the steps of what is frozen are 0.

    Args:
      chain: made for `of_trained(trains, parameters)`.
      trains: a tree of bool.
    """

    def init(params: Any) -> Any:
        return chain.init(of_trained(trains, params))

    def update(updates: Any, state: Any, params: Any = None) -> Any:
        ours = None if params is None else of_trained(trains, params)
        found, state = chain.update(of_trained(trains, updates), state, ours)
        learned = iter(jax.tree.leaves(found))

        def one(learns: bool, old: jax.Array) -> jax.Array:
            return next(learned) if learns else jnp.zeros_like(old)

        return jax.tree.map(one, trains, updates), state

    return optax.GradientTransformation(init, update)
