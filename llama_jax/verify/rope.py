"""Angles of rope against the formula in float64, which is written out here once more.

A pair turns by position p times its frequency f. With u = 2^-24, a rounding of float32, the model's
f is off by ln(theta) e u (its exponent e = i/n is rounded) and 2u (a power, a reciprocal), the
product by u: at position 131,071 the fastest pairs are off by hundredths of a radian, in every
implementation whose angles are float32 and in the one that trained the weights. The bound of a
cosine is that of its angle and a few u.
"""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from llama_jax.verify.declared import Said
from llama_jax.verify.report import Line, Section, within
from llama_jax.verify.rope_rules import gain, stretched

TITLE = "rope, cosines and sines against the formula in float64"
POSITIONS = (0, 8192, 81_920, 131_071)
U = 2.0**-24
# Of the divisors in a GGUF file, computed by another program in float32 in some five steps.
DIVISOR = 16 * U
# Of a cosine of float32; XLA's and torch's are within 0.6 u, up to 131,071 radians.
COSINE = 2 * U


def frequencies(said: Said, head_dim: int) -> tuple[np.ndarray, np.ndarray]:
    """Radians a position of each pair, and how far float32 arithmetic may be from them; float64.

    Of a rule that depends on the length of a sequence, in one to the last of `POSITIONS`.
    """
    n = head_dim // 2
    e = np.arange(n) / n
    f = said.theta**-e
    error = f * U * (math.log(said.theta) * e + 2)
    if said.divisors is not None:
        return f / said.divisors, error / said.divisors + f / said.divisors * DIVISOR
    if said.rule is not None:
        return stretched(said.rule, said.theta, f, error, POSITIONS[-1] + 1)
    if said.scaling is None:
        return f, error
    pairs = [_scaled(*pair, said.scaling) for pair in zip(f, error, strict=True)]
    values, errors = zip(*pairs, strict=True)
    return np.array(values), np.array(errors)


def _scaled(
    f: float, error: float, scaling: tuple[float, float, float, float]
) -> tuple[float, float]:
    """Llama 3.1's rule for one pair (arXiv:2407.21783, section 3.4), and its rounding."""
    factor, low, high, original = scaling
    wavelength = 2 * math.pi / f
    if wavelength < original / high:
        return f, error
    if wavelength > original / low:
        return f / factor, error / factor + f / factor * U
    # Between both, linear in the number of waves that the original context holds.
    waves = original / wavelength
    share = (waves - low) / (high - low)
    found = (1 - share) * f / factor + share * f
    waves_error = waves * (error / f + 3 * U)
    share_error = (waves_error + U * abs(waves - low)) / (high - low) + U * share
    return found, (f - f / factor) * share_error + found * (error / f + 3 * U)


def rope(model_rope: Any, head_dim: int, said: Said) -> Section:
    """Compares cosines and sines of the model with the formula, position by position."""
    if model_rope is None:
        return Section(TITLE, (Line("origin", "no layer has a rotary embedding"),))
    f, f_error = frequencies(said, head_dim)
    positions = jnp.array(POSITIONS, jnp.int32)[None, :, None]

    @jax.jit
    def table(positions_BTA):
        angles = model_rope.angles(positions_BTA, head_dim)
        return model_rope.gain * jnp.cos(angles)[0], model_rope.gain * jnp.sin(angles)[0]

    scale = gain(said.rule)
    cos, sin = (np.asarray(x, np.float64) for x in table(positions))
    lines = [Line("origin", said.origin)]
    for row, position in enumerate(POSITIONS):
        angle = position * f
        bound = scale * (position * f_error + angle * U + COSINE) + (scale != 1) * COSINE
        difference = np.maximum(
            abs(cos[row] - scale * np.cos(angle)), abs(sin[row] - scale * np.sin(angle))
        )
        worst = int(np.argmax(difference))
        share = difference / bound
        near = int(np.argmax(share))
        lines.append(
            within(
                f"position {position:,}",
                float(share[near]),
                1.0,
                f"largest difference {difference[worst]:.1e} (pair {worst} of {len(f)}, bound "
                f"{bound[worst]:.1e}); nearest to its bound: pair {near}, {share[near]:.2g} of it",
                difference=float(difference[worst]),
                pair=worst,
                bound_of_pair=float(bound[worst]),
            )
        )
    return Section(TITLE, tuple(lines))
