"""What goes into a stack beside the vectors: small pytrees; each part takes what it needs."""

from dataclasses import dataclass, field

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Places:
    """Where the tokens of one call go in a cache, and what its slots hold after it.

    Attributes:
      positions: place of the token in each slot; -1 where none is.
      valid: slots that hold a token.
      index: the slot of the call's first token; one for all rows, or one a row.
      fresh: the cache held nothing before this call, so its tokens see only each other.
    """

    positions: Int[Array, "B S"]
    valid: Bool[Array, "B S"]
    index: Int[Array, "*rows"]
    fresh: bool = field(default=False, metadata={"static": True})


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Inputs:
    """What all blocks of a stack are told of the tokens that go through it.

    Attributes:
      positions: coordinates of the tokens.
      valid: tokens that exist.
      segments: their documents in packed rows, or None.
      bias: added to the scores of self-attention; the stack's own (`Stack.bias`).
      places: in the cache, or None without one; the stack fills them in.
      frames: frames of video; tokens are frame by frame.
      parts: lengths of the streams joined in this sequence (see `Mask.parts`).
      allow: which token each may see besides, in self-attention without a cache, or None.
    """

    positions: Int[Array, "B T A"]
    valid: Bool[Array, "B T"]
    segments: Int[Array, "B T"] | None = None
    bias: Float[Array, "N T S"] | None = None
    places: Places | None = None
    allow: Bool[Array, "B T S"] | None = None
    frames: int = field(default=1, metadata={"static": True})
    parts: tuple[int, ...] = field(default=(), metadata={"static": True})


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Memory:
    """What cross-attention reads.

    Attributes:
      x: the vectors, or None if their keys are in the cache.
      valid: vectors that exist.
      allow: what each token may see besides, of this call's tokens alone, or None.
      first: position in the text from which on each vector is seen, or None: a picture is seen by
        the text after it.
      end: position before which it is seen.
      parts: lengths of the streams joined in the memory.
    """

    x: Float[Array, "B S D"] | None
    valid: Bool[Array, "B S"]
    allow: Bool[Array, "B T S"] | None = None
    first: Int[Array, "B S"] | None = None
    end: Int[Array, "B S"] | None = None
    parts: tuple[int, ...] = field(default=(), metadata={"static": True})

    def allowed(self, positions: Int[Array, "B T A"]) -> Bool[Array, "B T S"] | None:
        """Which vectors each token may see; None if they may see all."""
        if self.first is None or self.end is None:
            return self.allow
        at_BT1 = positions[:, :, :1]
        inside = (self.first[:, None, :] <= at_BT1) & (at_BT1 < self.end[:, None, :])
        return inside if self.allow is None else inside & self.allow

    def seen(self, positions: Int[Array, "B T A"]) -> Bool[Array, "B T"]:
        """Whether each token sees anything of the memory."""
        allowed, valid_B1S = self.allowed(positions), self.valid[:, None, :]
        there = valid_B1S if allowed is None else allowed & valid_B1S
        return jnp.broadcast_to(jnp.any(there, axis=2), positions.shape[:2])
