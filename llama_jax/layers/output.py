"""What comes out of a stack, and of a model's `hidden`."""

from dataclasses import dataclass, field, replace

import jax
from jaxtyping import Array, Float

from llama_jax.layers.cache import Cache


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Output:
    """The vectors after all layers.

    Attributes:
      x: the vectors.
      cache: with their tokens in it, or None without one.
      aux: what layers sowed as "losses", by name, one value a layer that sowed it, in their order;
        empty unless the collection "losses" is mutable.
      taps: the vectors after each layer that was asked for.
    """

    x: Float[Array, "B T D"]
    cache: Cache | None = None
    aux: dict[str, jax.Array] = field(default_factory=dict)
    taps: tuple[Float[Array, "B T D"], ...] = ()

    def with_x(self, x: Float[Array, "B T D"]) -> "Output":
        """The same with other vectors."""
        return replace(self, x=x)
