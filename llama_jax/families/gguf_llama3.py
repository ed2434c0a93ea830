"""Llama 3.1's rope scaling as GGUF keeps it: the tensor `rope_freqs.weight`.

GGUF has no fields for the scaling's parameters; it has, for each rotary pair, what its frequency is
divided by: 1 where the wave is kept, `factor` where it is stretched, something between in between.
"""

import math
from itertools import product
from pathlib import Path

import numpy as np

from llama_jax.errors import FormatError
from llama_jax.layers.rope import Llama3Rope, Rope

TENSOR = "rope_freqs.weight"

# Two float32 computations of one divisor, each of some five roundings.
ROUNDING = 1e-6

# What a file's divisors are compared with, the published values first: a small head has so few
# pairs that several parameters give the same divisors. `low` is 1 throughout: with low, high and
# original all multiplied by one number the divisors stay what they are.
ORIGINAL = (8192, *(2**n for n in range(10, 21)))
HIGH = (4.0, 1.0, 2.0, 8.0, 16.0, 32.0)
FACTOR = (8.0, 32.0, 16.0, 2.0, 4.0, 64.0)


def divisors(rope: Llama3Rope, head_dim: int) -> np.ndarray:
    """What each pair's frequency is divided by, float32 [H/2], as llama.cpp's converter has it."""
    f = Rope(rope.theta, rope.split).frequencies(head_dim)
    wavelength = np.float32(2 * math.pi) * (np.float32(1) / f)
    factor = np.float32(rope.factor)
    if rope.low == rope.high:
        between = np.ones_like(f)
    else:
        share = rope.original * (np.float32(1) / wavelength) - np.float32(rope.low)
        share = np.clip(share / np.float32(rope.high - rope.low), 0, 1)
        between = np.float32(1) / ((1 - share) / factor + share)
    found = np.where(wavelength > rope.original / rope.low, factor, between)
    return np.where(wavelength < rope.original / rope.high, np.float32(1), found)


def rope(theta: float, head_dim: int, found: np.ndarray, place: Path | str) -> Rope:
    """The rotary embedding whose divisors are `found`.

    Raises:
      FormatError: they are not those of Llama 3.1's scaling, with parameters that somebody uses.
    """
    if np.all(found == 1):
        return Rope(theta)
    largest = float(np.max(found, initial=1))
    # Without a wave long enough to be stretched whole, the largest divisor is not the factor.
    for high, original, factor in product(HIGH, ORIGINAL, (*FACTOR, largest)):
        if math.isfinite(factor):
            scaled = Llama3Rope(theta, factor=factor, high=high, original=original)
            if np.allclose(divisors(scaled, head_dim), found, rtol=ROUNDING, atol=0):
                return scaled
    raise FormatError(
        f"{place}: tensor {TENSOR!r} holds other divisors than Llama 3.1's scaling of rope gives, "
        f"from {found.min():g} to {found.max():g}; that scaling is not known here"
    )
