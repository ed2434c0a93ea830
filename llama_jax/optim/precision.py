"""Weights and moments kept in bfloat16, and computed with in float32.

A bfloat16 number has eight bits: rounded to the nearest, a step smaller than 1/256 of a weight
would leave it where it is, for ever. So weights are rounded up or down at random, up the likelier
the nearer, and a thousand small steps go as far as they should on average (Gupta et al. 2015,
arXiv:1502.02551). Vectors (norm scales, biases, gates) are few and stay float32.
"""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from llama_jax.layers.linear import Lettered
from llama_jax.optim.parameters import decays
from llama_jax.trees import path_name

DTYPES = ("float32", "bfloat16")
# A mean of squares that takes 1 - b2 of the new is kept by bfloat16 if that is not below its last
# bit.
LAST_BIT = 2**-7


def stored_as(boxed: Any, dtype: str) -> Any:
    """Parameters whose matrices are of a dtype.

    Args:
      boxed: the parameters, float32, each a `Lettered` box.
      dtype: one of `DTYPES`.
    """

    def one(path: Any, box: Any) -> Any:
        if not isinstance(box, Lettered):
            return box
        matrix = decays(path_name(path).rsplit("/", 1)[-1], box.letters)
        return box.replace(value=box.value.astype(dtype)) if matrix else box

    return jax.tree_util.tree_map_with_path(one, boxed, is_leaf=lambda x: isinstance(x, Lettered))


def whole(tree: Any) -> Any:
    """The same numbers with bfloat16 made float32."""
    return jax.tree.map(lambda x: x.astype(jnp.float32) if x.dtype == jnp.bfloat16 else x, tree)


def in_float32(transform: optax.GradientTransformation) -> optax.GradientTransformation:
    """The transformation of float32 gradients and weights, whatever they are kept in."""

    def update(updates: Any, state: Any, params: Any = None) -> Any:
        return transform.update(whole(updates), state, None if params is None else whole(params))

    return optax.GradientTransformation(lambda params: transform.init(whole(params)), update)


def squares_in(transform: optax.GradientTransformation, dtype: str) -> Any:
    """Adam whose mean of squares, `nu`, is kept in a dtype."""

    def cast(state: Any, kind: Any) -> Any:
        return state._replace(nu=jax.tree.map(lambda x: x.astype(kind), state.nu))

    def update(updates: Any, state: Any, params: Any = None) -> Any:
        updates, state = transform.update(updates, cast(state, jnp.float32), params)
        return updates, cast(state, dtype)

    return optax.GradientTransformation(lambda params: cast(transform.init(params), dtype), update)


def stepped(params: Any, updates: Any, key: jax.Array) -> Any:
    """Weights after their updates; those kept in bfloat16 are rounded at random.

    Args:
      params: the weights.
      updates: float32, what is added to them.
      key: decides the rounding, the same on any mesh.
    """
    leaves, tree = jax.tree.flatten(params)
    steps = tree.flatten_up_to(updates)
    after = [
        rounded(p.astype(jnp.float32) + u, jax.random.fold_in(key, i))
        if p.dtype == jnp.bfloat16
        else optax.apply_updates(p, u)
        for i, (p, u) in enumerate(zip(leaves, steps, strict=True))
    ]
    return tree.unflatten(after)


def rounded(x: jax.Array, key: jax.Array) -> jax.Array:
    """Float32 as bfloat16, up or down at random, so that the mean is x; what is not finite stays.

    The lower half of the bits is cut off after a random number below it has been added.
    """
    bits = jax.lax.bitcast_convert_type(x, jnp.uint32)
    noise = jax.random.bits(key, x.shape, jnp.uint16).astype(jnp.uint32)
    cut = (bits + noise) & jnp.uint32(0xFFFF0000)
    near = jax.lax.bitcast_convert_type(cut, jnp.float32)
    return jnp.where(jnp.isfinite(x), near, x).astype(jnp.bfloat16)
