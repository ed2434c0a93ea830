"""From logits to the next token: greedy, or drawn with temperature, top-k, top-p, min-p.

Its numbers are traced, so that a program compiled for one temperature serves all others; which of
them are in use is part of the program.
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from llama_jax.errors import UserError
from llama_jax.messages import short

MOST = 1e18  # of a setting; float32 and the compiler's whole numbers end not far above
LEAST = 1e-30  # of a temperature: what is divided by less can be infinite


@jax.tree_util.register_pytree_node_class
@dataclass(frozen=True)
class Sampling:
    """How the next token is chosen; the rules apply in the order of these fields, as transformers'.

    Attributes:
      repetition_penalty: logits of tokens that the row holds are divided by it if positive, else
        multiplied (CTRL, Keskar et al. 2019, arXiv:1909.05858); 1 for none.
      temperature: divides the logits; 0 takes the most probable token.
      top_k: only this many of the most probable tokens; 0 for all.
      top_p: only the smallest set of tokens with this much probability (nucleus sampling, Holtzman
        et al. 2019, arXiv:1904.09751); 1 for all.
      min_p: only tokens with at least this share of the most probable one's probability (Nguyen et
        al. 2024, arXiv:2407.01082); 0 for all.
    """

    repetition_penalty: float = 1.0
    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0

    def __post_init__(self):
        for name, value in vars(self).items():
            number = isinstance(value, int | float | np.number) and -MOST < value < MOST
            if not number and not (isinstance(value, jax.Array) and value.ndim == 0):
                raise UserError(f"{name}={short(value)}: a number was expected, below {MOST:g}")
        if not 0 < self.repetition_penalty < float("inf"):
            raise UserError(
                f"repetition_penalty={self.repetition_penalty}: use 1 (none) or a little more"
            )
        if not 0 <= self.temperature < float("inf"):
            raise UserError(f"temperature={self.temperature}: use 0 (greedy) or more")
        if self.top_k < 0 or self.top_k != int(self.top_k):
            raise UserError(f"top_k={self.top_k}: use 0 (all tokens) or a whole number above")
        if not 0 < self.top_p <= 1:
            raise UserError(f"top_p={self.top_p}: use more than 0 and at most 1")
        if not 0 <= self.min_p < 1:
            raise UserError(f"min_p={self.min_p}: use 0 (all tokens) or more, below 1")

    @property
    def penalises(self) -> bool:
        """Whether it must know which tokens a row holds."""
        return not _is(self.repetition_penalty, 1)

    @property
    def draws(self) -> bool:
        """Whether it needs a random key."""
        return not _is(self.temperature, 0)

    def __call__(
        self,
        logits_BV: Float[Array, "B V"],
        key: jax.Array | None,
        seen_BV: Bool[Array, "B V"] | None = None,
    ) -> Int[Array, " B"]:
        """One token a row.

        Args:
          logits_BV: logits of the next token.
          key: one random key, or one a row ([B]); None will do if it does not draw.
          seen_BV: tokens that the row holds, for the penalty.
        """
        if self.penalises and seen_BV is not None:
            scaled = jnp.where(
                logits_BV > 0,
                logits_BV / self.repetition_penalty,
                logits_BV * self.repetition_penalty,
            )
            logits_BV = jnp.where(seen_BV, scaled, logits_BV)
        if not self.draws:
            return jnp.argmax(logits_BV, axis=-1).astype(jnp.int32)
        if key is None:
            raise UserError("to draw a token, a random key is needed")
        # From the largest on, so that a temperature near 0 leaves that one and no infinity.
        logits_BV = logits_BV - jnp.max(logits_BV, axis=-1, keepdims=True)
        logits_BV = logits_BV / jnp.maximum(self.temperature, LEAST)
        if 0 < self.top_k < logits_BV.shape[-1]:
            least = jax.lax.top_k(logits_BV, self.top_k)[0][:, -1:]
            logits_BV = jnp.where(logits_BV < least, -jnp.inf, logits_BV)
        if not _is(self.top_p, 1):
            ranked = jnp.sort(logits_BV, axis=-1, descending=True)
            probs = jax.nn.softmax(ranked, axis=-1)
            # A token stays if the more probable ones do not yet hold top_p; the first always does.
            kept = jnp.cumsum(probs, axis=-1) - probs < self.top_p
            least = jnp.min(jnp.where(kept, ranked, jnp.inf), axis=-1, keepdims=True)
            logits_BV = jnp.where(logits_BV < least, -jnp.inf, logits_BV)
        if not _is(self.min_p, 0):
            least = jnp.max(logits_BV, axis=-1, keepdims=True) + jnp.log(self.min_p)
            logits_BV = jnp.where(logits_BV < least, -jnp.inf, logits_BV)
        draw = jax.random.categorical
        token_B = jax.vmap(draw)(key, logits_BV) if key.ndim else draw(key, logits_BV)
        return token_B.astype(jnp.int32)

    def tree_flatten(self):
        """Numbers in use are traced; neutral ones, and top_k, which is a shape, are not."""
        traced, fixed = [], []
        for name, value in vars(self).items():
            plain = name == "top_k" or _is(value, self.__dataclass_fields__[name].default)
            fixed.append(value if plain else None)
            traced.extend([] if plain else [value])
        return tuple(traced), tuple(fixed)

    @classmethod
    def tree_unflatten(cls, fixed, traced):
        """The reverse; values were checked when the Sampling was made."""
        made, rest = object.__new__(cls), iter(traced)
        for name, value in zip(cls.__dataclass_fields__, fixed, strict=True):
            object.__setattr__(made, name, next(rest) if value is None else value)
        return made


def _is(value: float | jax.Array, neutral: float) -> bool:
    """Whether a number is the one that does nothing; a traced one is in use."""
    return isinstance(value, int | float) and value == neutral
