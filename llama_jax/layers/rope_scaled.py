"""Rotary embeddings stretched beyond the context of the training: linear, dynamic, yarn, longrope.

Each in the arithmetic of transformers (`modeling_rope_utils.py`), rounding by rounding, for the
reason in `Rope.frequencies`.

**A length that matters.** `DynamicRope` and `LongRope` turn long sequences otherwise than short
ones. What counts is the length that a row has reached: its highest position in this call, and one.
So whole texts, in training and in prefill, are turned as transformers turns them; it takes the
longest row of a batch where we take each row by itself, so that a row does not depend on its
neighbours. In decoding a token is turned by the length reached with it, and keys in the cache stay
as they were turned, which is what transformers does for a single text; but it keeps the
frequencies of the longest sequence that it has seen, and ours have no such memory.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from llama_jax.checked import checked
from llama_jax.layers.rope import Rope, powers


@checked
class LinearRope(Rope):
    """Positions divided by `factor` (Chen et al. 2023, arXiv:2306.15595; kaiokendev).

    Attributes:
      factor: how far all wavelengths are stretched; 1 or more.
    """

    factor: float = 1.0

    def __post_init__(self):
        super().__post_init__()
        _at_least_one("linear", self.factor)

    def frequencies(self, head_dim: int) -> np.ndarray:
        """Radians a position for each pair, float32 [H/2]."""
        return super().frequencies(head_dim) / np.float32(self.factor)


@checked
class DynamicRope(Rope):
    """A base that grows with the sequence, once that is longer than `original` ("NTK-aware").

    Source: transformers, "dynamic"; Peng et al. 2023 (arXiv:2309.00071), section 3.3. At length l
    theta is multiplied by (factor l / original - (factor - 1))^(H / (H - 2)).

    Attributes:
      factor: how fast it grows; 1 or more.
      original: tokens up to which nothing changes: the model's context.
    """

    factor: float = 1.0
    original: int = 2048

    def __post_init__(self):
        super().__post_init__()
        _at_least_one("dynamic", self.factor)
        _one_axis(self, "dynamic")

    @property
    def steady(self) -> int | None:
        """See `Rope.steady`."""
        return self.original

    def angles(self, positions_BTA: Int[Array, "B T A"], head_dim: int) -> Float[Array, "B T H2"]:
        """The angle of every pair at every token, [B, T, H/2], float32, by each row's length."""
        n, f32 = head_dim // 2, jnp.float32
        [_] = self.pairs(head_dim)
        length_B = jnp.maximum(_lengths(positions_BTA), self.original).astype(f32)
        grown_B = f32(self.factor) * length_B / f32(self.original) - f32(self.factor - 1)
        # A unit in the last place of a frequency is 0.008 radians at position 131,071, and XLA's
        # float32 power is off by some; torch's is float64's, rounded, nearly always.
        with jax.enable_x64(True):
            power_B = jnp.power(grown_B.astype(jnp.float64), n / (n - 1))
            theta_B1 = (f32(self.theta) * power_B.astype(f32))[:, None].astype(jnp.float64)
            exponents = (np.arange(n, dtype=np.float32) / np.float32(n)).astype(np.float64)
            f_BH2 = f32(1) / jnp.power(theta_B1, exponents).astype(f32)
        return positions_BTA[..., :1].astype(f32) * f_BH2[:, None]


@checked
class YarnRope(Rope):
    """YaRN: short wavelengths kept, long ones stretched, those between mixed by their number.

    Source: Peng et al. 2023 (arXiv:2309.00071), section 3.4.

    Attributes:
      factor: how far it is stretched; 1 or more.
      original: positions before the context was extended.
      fast: waves that a context of `original` holds at least that are kept.
      slow: waves that it holds at most that are stretched whole.
      attention: the gain; None for the paper's, 0.1 ln(factor) + 1.
      truncate: whether the pairs between which is mixed are whole numbers.
    """

    factor: float = 1.0
    original: int = 4096
    fast: float = 32.0
    slow: float = 1.0
    attention: float | None = None
    truncate: bool = True

    def __post_init__(self):
        super().__post_init__()
        _one_axis(self, "yarn")
        _at_least_one("yarn", self.factor)
        if not (self.theta > 1 and self.original > 0 and 0 < self.slow <= self.fast):
            raise ValueError(
                f"yarn rope: theta={self.theta}, original={self.original}, slow={self.slow}, "
                f"fast={self.fast}; theta > 1, positive numbers and slow <= fast were expected"
            )
        _positive("yarn", self.attention)

    @property
    def gain(self) -> float:
        """See `Rope.gain`."""
        return yarn_gain(self.factor) if self.attention is None else self.attention

    def frequencies(self, head_dim: int) -> np.ndarray:
        """Radians a position for each pair, float32 [H/2], in the reference's own arithmetic."""
        [n] = self.pairs(head_dim)
        low, high = self._between(head_dim)
        ramp = (np.arange(n, dtype=np.float32) - np.float32(low)) / np.float32(high - low)
        kept = np.float32(1) - np.clip(ramp, np.float32(0), np.float32(1))
        stretched = powers(self.theta, n, self.factor)
        return stretched * (np.float32(1) - kept) + powers(self.theta, n) * kept

    def _between(self, head_dim: int) -> tuple[float, float]:
        """The first pair that is not kept, and the last that is not stretched whole."""

        def pair(waves: float) -> float:
            turned = math.log(self.original / (waves * 2 * math.pi))
            return head_dim * turned / (2 * math.log(self.theta))

        low, high = pair(self.fast), pair(self.slow)
        if self.truncate:
            low, high = float(math.floor(low)), float(math.ceil(high))
        low, high = max(low, 0.0), min(high, head_dim - 1.0)
        return low, high + 0.001 if low == high else high


def yarn_gain(factor: float, share: float = 1.0) -> float:
    """The gain that YaRN's paper gives for a factor; `share` of its logarithm."""
    return 1.0 if factor <= 1 else 0.1 * share * math.log(factor) + 1.0


@checked
class LongRope(Rope):
    """LongRoPE: a divisor for each pair that was searched for; one list for long sequences.

    Source: Ding et al. 2024 (arXiv:2402.13753); Phi-3.

    Attributes:
      short: what divides each pair's frequency in sequences of up to `original` tokens.
      long: the same in longer ones.
      original: positions before the context was extended.
      attention: the gain.
    """

    short: tuple[float, ...] = ()
    long: tuple[float, ...] = ()
    original: int = 4096
    attention: float = 1.0

    def __post_init__(self):
        super().__post_init__()
        _one_axis(self, "longrope")
        _positive("longrope", self.attention, *self.short, *self.long)
        if len(self.short) != len(self.long) or self.original <= 1:
            raise ValueError(
                f"longrope: {len(self.short)} short and {len(self.long)} long factors, original="
                f"{self.original}; as many of both, and original > 1, were expected"
            )

    @property
    def gain(self) -> float:
        """See `Rope.gain`."""
        return self.attention

    @property
    def steady(self) -> int | None:
        """See `Rope.steady`."""
        return self.original

    def pairs(self, head_dim: int) -> tuple[int, ...]:
        """See `Rope.pairs`."""
        [n] = super().pairs(head_dim)
        if n != len(self.short):
            raise ValueError(
                f"longrope: {len(self.short)} factors for a head of {head_dim}; {n} were expected"
            )
        return (n,)

    def frequencies(self, head_dim: int) -> np.ndarray:
        """Radians a position for each pair in short sequences, float32 [H/2]."""
        [n] = self.pairs(head_dim)
        return powers(self.theta, n, np.array(self.short, np.float32))

    def angles(self, positions_BTA: Int[Array, "B T A"], head_dim: int) -> Float[Array, "B T H2"]:
        """The angle of every pair at every token, [B, T, H/2], float32, by each row's length."""
        [n] = self.pairs(head_dim)
        long = powers(self.theta, n, np.array(self.long, np.float32))
        is_long_B = _lengths(positions_BTA) > self.original
        f_BH2 = jnp.where(is_long_B[:, None], long, self.frequencies(head_dim))
        return positions_BTA[..., :1].astype(jnp.float32) * f_BH2[:, None]


def longrope_gain(factor: float, original: int) -> float:
    """The gain that LongRoPE's paper gives where a context was stretched by a factor."""
    # An original context of one token is refused by `LongRope`.
    if factor <= 1 or original <= 1:
        return 1.0
    return math.sqrt(1 + math.log(factor) / math.log(original))


def _lengths(positions_BTA: Int[Array, "B T A"]) -> Int[Array, " B"]:
    """The length that each row has reached with the tokens of this call."""
    return jnp.max(positions_BTA[..., 0], axis=1) + 1


def _at_least_one(kind: str, factor: float) -> None:
    if not 1 <= factor < math.inf:
        raise ValueError(f"{kind} rope: factor={factor}; 1 or more was expected")


def _positive(kind: str, *numbers: float | None) -> None:
    for number in numbers:
        if number is not None and not 0 < number < math.inf:
            raise ValueError(f"{kind} rope: {number} is among its factors; positive ones are")


def _one_axis(rope: Rope, kind: str) -> None:
    if rope.split != (1,):
        raise ValueError(f"{kind} rope of split {rope.split}; one axis, (1,), was expected")
