"""Tokens in the order of their experts, and each through its own: the products of top-k alone.

    chosen    2 0 2 1          in order    0 1 2 2          tokens of each expert    1 1 2
    token     0 1 2 3                      1 3 0 2

No expert has a capacity, so no token is dropped, however uneven the choice.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Float, Int


def experts(
    x_TD: Float[Array, "T D"],
    chosen_TC: Int[Array, "T C"],
    share_TC: Float[Array, "T C"],
    gate_EDF: Float[Array, "E D F"],
    up_EDF: Float[Array, "E D F"],
    down_EFD: Float[Array, "E F D"],
    activation: Callable[[jax.Array], jax.Array],
) -> Float[Array, "T D"]:
    """See `reference.experts`."""
    E, (T, C) = len(gate_EDF), chosen_TC.shape
    expert = jnp.where((chosen_TC >= 0) & (chosen_TC < E), chosen_TC, E).reshape(-1)
    order = jnp.argsort(expert, stable=True)  # those of no expert here come last
    counts_E = jnp.sum(expert[:, None] == jnp.arange(E), axis=0, dtype=jnp.int32)
    share = share_TC.reshape(-1)[order].astype(x_TD.dtype)
    x = x_TD[order // C] * share[:, None]
    gated = activation(jax.lax.ragged_dot(x, gate_EDF, counts_E))
    hidden = checkpoint_name(gated * jax.lax.ragged_dot(x, up_EDF, counts_E), "hidden")
    y = jax.lax.ragged_dot(hidden, down_EFD, counts_E)
    y = jnp.where((expert[order] < E)[:, None], y, 0)  # beyond the last group nothing is promised
    return jnp.sum(y[jnp.argsort(order)].reshape(T, C, -1), axis=1)
