"""From logits to the next token: greedy, temperature, top-k, top-p."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int


@dataclass(frozen=True)
class Sampling:
    """How the next token is chosen.

    Attributes:
      temperature: divides the logits; 0 takes the most probable token.
      top_k: only this many of the most probable tokens; 0 for all.
      top_p: only the smallest set of tokens with this much probability (nucleus sampling, Holtzman
        et al. 2019, arXiv:1904.09751); 1 for all.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0

    def __post_init__(self):
        if not self.temperature >= 0:
            raise ValueError(f"temperature={self.temperature}: use 0 (greedy) or more")
        if self.top_k < 0:
            raise ValueError(f"top_k={self.top_k}: use 0 (all tokens) or more")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p={self.top_p}: use more than 0 and at most 1")

    def __call__(self, logits_BV: Float[Array, "B V"], key: jax.Array) -> Int[Array, " B"]:
        """One token a row."""
        if self.temperature == 0:
            return jnp.argmax(logits_BV, axis=-1).astype(jnp.int32)
        logits_BV = logits_BV / self.temperature
        if self.top_k:
            least = jax.lax.top_k(logits_BV, self.top_k)[0][:, -1:]
            logits_BV = jnp.where(logits_BV < least, -jnp.inf, logits_BV)
        if self.top_p < 1:
            ranked = jnp.sort(logits_BV, axis=-1, descending=True)
            probs = jax.nn.softmax(ranked, axis=-1)
            # A token stays if the more probable ones do not yet hold top_p; the first always does.
            kept = jnp.cumsum(probs, axis=-1) - probs < self.top_p
            least = jnp.min(jnp.where(kept, ranked, jnp.inf), axis=-1, keepdims=True)
            logits_BV = jnp.where(logits_BV < least, -jnp.inf, logits_BV)
        return jax.random.categorical(key, logits_BV).astype(jnp.int32)
