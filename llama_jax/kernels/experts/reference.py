"""The definition: every expert sees every token, and what it was not chosen for as zeros."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
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
    """The sum over a token's experts of down(activation(gate(share x)) * up(share x)).

    The share scales what goes in: a gated feed-forward would scale what comes out otherwise.

    Args:
      x_TD: the tokens.
      chosen_TC: experts of each token, all different; one that is not here (below 0, or E and
        above) adds nothing.
      share_TC: the factor of each.
      gate_EDF: weights.
      up_EDF: weights.
      down_EFD: weights.
      activation: maps 0 to 0.
    """
    here_TCE = chosen_TC[:, :, None] == jnp.arange(len(gate_EDF))
    share_TE = jnp.einsum("TCE,TC->TE", here_TCE.astype(share_TC.dtype), share_TC)
    x_ETD = share_TE.T[:, :, None].astype(x_TD.dtype) * x_TD
    gated_ETF = activation(jnp.einsum("ETD,EDF->ETF", x_ETD, gate_EDF))
    hidden_ETF = gated_ETF * jnp.einsum("ETD,EDF->ETF", x_ETD, up_EDF)
    return jnp.einsum("ETF,EFD->TD", hidden_ETF, down_EFD)
