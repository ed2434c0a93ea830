"""Rotary position embedding (Su et al. 2021, arXiv:2104.09864), over one axis or over (t, y, x).

Pair i of a head's H/2 pairs, (x[i], x[i + H/2]) in the half-split layout, turns by position *
theta^(-i/n). With several axes the pairs are dealt out in consecutive runs, each with frequencies
of its own: a head of 64 with split (2, 3, 3) gives 8 pairs to t, 12 to y and 12 to x.
"""

from dataclasses import dataclass

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int


@dataclass(frozen=True)
class Rope:
    """Plain rotary embedding.

    Attributes:
      theta: base of the wavelengths; the longest is about 2 pi theta positions.
      split: shares of the pairs that go to the position axes, in order; (1,) uses the first axis
        only.
    """

    theta: float = 10_000.0
    split: tuple[int, ...] = (1,)

    def __post_init__(self):
        if not self.split or min(self.split) < 0 or sum(self.split) == 0:
            raise ValueError(
                f"rope split {self.split}: give a non-negative share an axis, e.g. (2, 3, 3)"
            )

    def pairs(self, head_dim: int) -> tuple[int, ...]:
        """How many of the H/2 pairs each axis gets."""
        if head_dim % 2 or (head_dim // 2) % sum(self.split):
            raise ValueError(
                f"head_dim {head_dim} has {head_dim / 2:g} pairs, which split {self.split} "
                f"does not divide; use a head_dim that is a multiple of {2 * sum(self.split)}"
            )
        return tuple(head_dim // 2 // sum(self.split) * share for share in self.split)

    def frequencies(self, head_dim: int) -> np.ndarray:
        """Radians a position for each pair, [H/2]; computed in float64, used in float32."""
        parts = [
            self.theta ** -(np.arange(n, dtype=np.float64) / n) for n in self.pairs(head_dim) if n
        ]
        return np.concatenate(parts)

    def angles(self, positions_BTA: Int[Array, "B T A"], head_dim: int) -> Float[Array, "B T H2"]:
        """The angle of every pair at every token, [B, T, H/2], always float32.

        bfloat16 rounds 257 to 256, so angles never leave float32.

        Raises:
          ValueError: fewer position axes than the split names.
        """
        if positions_BTA.shape[-1] < len(self.split):
            raise ValueError(
                f"rope split {self.split} needs {len(self.split)} position axes, "
                f"{positions_BTA.shape} came"
            )
        axis = np.repeat(np.arange(len(self.split)), self.pairs(head_dim))
        return positions_BTA.astype(jnp.float32)[..., axis] * self.frequencies(head_dim).astype(
            np.float32
        )


def rotate(
    x_BTNH: Float[Array, "B T N H"], angles: Float[Array, "B T H2"]
) -> Float[Array, "B T N H"]:
    """Turns each pair (x[i], x[i + H/2]) by its angle; float32 inside, x's type outside."""
    cos, sin = jnp.cos(angles)[:, :, None], jnp.sin(angles)[:, :, None]
    a, b = jnp.split(x_BTNH.astype(jnp.float32), 2, axis=-1)
    return jnp.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1).astype(x_BTNH.dtype)
