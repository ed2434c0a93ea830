"""How far two right computations of the same logits may be apart."""

from typing import Any

import jax.numpy as jnp

from llama_jax.families.sizes import sizes
from llama_jax.models.decoder import Decoder

# Models of two layers differ by this much from their own reference.
SMALLEST = 1e-5


def tolerance(model: Decoder, dtype: Any) -> float:
    """Of the largest logit, in size.

    Roundings of two orders of summation add up like a random walk: a layer's longest sum has F
    terms, and there are L layers, so they reach u sqrt(L F), where u is half a unit in the last
    place: 2^-24 in float32. SmolLM2-135M, with 1.3e-5 by this rule, differs from transformers by
    2.4e-6 and transformers in float32 from transformers in float64 by 1.6e-6.

    In bfloat16 u is 2^-8, but sums are float32: only what is stored is rounded, some ten numbers a
    layer, u sqrt(10 L). SmolLM2-135M, with 6.8e-2, differs by 2.2e-2. So coarse a measure misses
    small faults, such as another eps; verify in float32 first.
    """
    given = sizes(model)
    layers, hidden = given.layers, given.hidden
    if jnp.dtype(dtype) == jnp.float32:
        return max(SMALLEST, 2.0**-24 * (layers * hidden) ** 0.5)
    return float(jnp.finfo(dtype).eps) / 2 * (10 * layers) ** 0.5
