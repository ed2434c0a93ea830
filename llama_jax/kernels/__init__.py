"""Arrays in, arrays out: attention and its masks; no Flax here."""

from llama_jax.kernels.attention.api import attention
from llama_jax.kernels.attention.mask import Mask

__all__ = ["Mask", "attention"]
