"""Rotary position embedding (Su et al. 2021, arXiv:2104.09864), over one axis or over (t, y, x).

Pair i of a head's H/2 pairs, (x[i], x[i + H/2]) in the half-split layout, turns by position *
theta^(-i/n). With several axes the pairs are dealt out in consecutive runs, each with frequencies
of its own: a head of 64 with split (2, 3, 3) gives 8 pairs to t, 12 to y and 12 to x.

What stretches it for longer contexts is a type beside `Rope`: `Llama3Rope` here, the others in
`rope_scaled`.
"""

import math

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from llama_jax.checked import checked
from llama_jax.errors import UserError
from llama_jax.limits import check_limits


@checked
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
        check_limits(self)
        if not self.split or min(self.split) < 0 or sum(self.split) == 0:
            raise UserError(
                f"rope split {self.split}: give a non-negative share an axis, e.g. (2, 3, 3)"
            )

    def pairs(self, head_dim: int) -> tuple[int, ...]:
        """How many of the H/2 pairs each axis gets."""
        if head_dim % 2 or (head_dim // 2) % sum(self.split):
            raise UserError(
                f"head_dim {head_dim} has {head_dim / 2:g} pairs, which split {self.split} "
                f"does not divide; use a head_dim that is a multiple of {2 * sum(self.split)}"
            )
        return tuple(head_dim // 2 // sum(self.split) * share for share in self.split)

    def frequencies(self, head_dim: int) -> np.ndarray:
        """Radians a position for each pair, float32 [H/2].

        Rounded where the published models were trained: exponent, power and reciprocal each to
        float32. At position 131,071 a unit in the last place is 0.008 radians, so a table that is
        nearer to the mathematics would be further from the weights.
        """
        return np.concatenate([powers(self.theta, n) for n in self.pairs(head_dim) if n])

    @property
    def gain(self) -> float:
        """What all cosines and sines are multiplied by, and so scores by its square."""
        return 1.0

    @property
    def steady(self) -> int | None:
        """Tokens of a sequence up to which its length changes no angle; None if it never does."""
        return None

    def angles(self, positions_BTA: Int[Array, "B T A"], head_dim: int) -> Float[Array, "B T H2"]:
        """The angle of every pair at every token, [B, T, H/2], always float32.

        bfloat16 rounds 257 to 256, so angles never leave float32.

        Raises:
          UserError: fewer position axes than the split names.
        """
        if positions_BTA.shape[-1] < len(self.split):
            raise UserError(
                f"rope split {self.split} needs {len(self.split)} position axes, "
                f"{positions_BTA.shape} came"
            )
        axis = np.repeat(np.arange(len(self.split)), self.pairs(head_dim))
        return positions_BTA.astype(jnp.float32)[..., axis] * self.frequencies(head_dim)

    def turn(
        self, x_BTNH: Float[Array, "B T N H"], positions_BTA: Int[Array, "B T A"]
    ) -> Float[Array, "B T N H"]:
        """Queries or keys, turned by their positions."""
        return rotate(x_BTNH, self.angles(positions_BTA, x_BTNH.shape[-1]), self.gain)


@checked
class Llama3Rope(Rope):
    """Long wavelengths stretched by `factor`, short ones kept, those between interpolated.

    Llama 3.1, 3.2, 3.3 and 4 (Llama 3.1: arXiv:2407.21783, section 3.4; transformers,
    `modeling_rope_utils.py`, "llama3"). A wavelength w is kept if w < original / high, becomes
    factor w if w > original / low, and in between the frequency is mixed linearly in original / w.

    Attributes:
      factor: how far it is stretched; 8 in 3.1 and 3.3, 32 in 3.2 1B and 3B, 16 in Llama 4 Scout.
      low: waves a context of `original` holds at most that are stretched whole.
      high: waves that it holds at least that are kept.
      original: positions before the context was extended.
    """

    theta: float = 500_000.0
    factor: float = 8.0
    low: float = 1.0
    high: float = 4.0
    original: int = 8192

    def __post_init__(self):
        super().__post_init__()
        if not (self.factor >= 1 and 0 < self.low <= self.high and self.original > 0):
            raise UserError(
                f"llama3 rope: factor={self.factor}, low={self.low}, high={self.high}, "
                f"original={self.original}; factor >= 1 and 0 < low <= high were expected"
            )

    def frequencies(self, head_dim: int) -> np.ndarray:
        """Radians a position for each pair, float32 [H/2], in the reference's own arithmetic."""
        f = super().frequencies(head_dim)
        wavelength = np.float32(2 * math.pi) / f
        stretched = f / np.float32(self.factor)
        if self.low == self.high:  # nothing in between; the mixture would divide by zero
            return np.where(wavelength > self.original / self.low, stretched, f)
        waves = np.float32(self.original) / wavelength
        share = (waves - np.float32(self.low)) / np.float32(self.high - self.low)
        mixed = (np.float32(1) - share) * stretched + share * f
        f = np.where(wavelength < self.original / self.high, f, mixed)
        return np.where(wavelength > self.original / self.low, stretched, f)


def powers(theta: float, n: int, divisors: np.ndarray | float = 1.0) -> np.ndarray:
    """1 / (divisor theta^(i/n)) for i < n, float32, with the roundings of the references (torch).

    Args:
      theta: the base.
      n: how many pairs.
      divisors: float32, of each pair or of all.
    """
    exponent = np.arange(n, dtype=np.float32) / np.float32(n)
    # A float64 power, rounded once, is torch's float32 power; numpy's own is off by a unit.
    power = np.power(np.float64(theta), exponent.astype(np.float64)).astype(np.float32)
    return np.float32(1) / (np.asarray(divisors, np.float32) * power)


def rotate(
    x_BTNH: Float[Array, "B T N H"], angles: Float[Array, "B T H2"], gain: float = 1.0
) -> Float[Array, "B T N H"]:
    """Turns each pair (x[i], x[i + H/2]) by its angle, and stretches it by the gain.

    float32 inside, x's type outside.
    """
    cos, sin = jnp.cos(angles)[:, :, None], jnp.sin(angles)[:, :, None]
    if gain != 1:
        cos, sin = cos * jnp.float32(gain), sin * jnp.float32(gain)
    a, b = jnp.split(x_BTNH.astype(jnp.float32), 2, axis=-1)
    return jnp.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1).astype(x_BTNH.dtype)
