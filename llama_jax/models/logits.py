"""Logits that are not formed yet."""

from dataclasses import dataclass, field

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from llama_jax.axes import shard
from llama_jax.layers.linear import product


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Logits:
    """Vectors, and the weight that makes logits of them.

    With a large vocabulary the logits are the largest array of a training step, and a loss needs
    only some of them at a time: `kernels.cross_entropy.linear_cross_entropy`.

    Attributes:
      x: the vectors.
      w: of x and the vocabulary, in the order of the equation.
      equation: of the logits, "BTD,DV->BTV" or with a table "BTD,VD->BTV".
      bias: added to the logits, or None.
    """

    x: Float[Array, "*batch D"]
    w: Float[Array, "_ _"]
    equation: str = field(metadata={"static": True})
    bias: Float[Array, " V"] | None = None

    @property
    def logits(self) -> Float[Array, "*batch V"]:
        """All of them, in float32."""
        logits = product(self.equation, self.x, self.w, preferred_element_type=jnp.float32)
        logits = logits if self.bias is None else logits + self.bias
        return shard(logits, self.equation.split("->")[1])
