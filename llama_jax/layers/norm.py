"""Normalisation: RMSNorm (Zhang and Sennrich 2019, arXiv:1910.07467), also bare, and LayerNorm."""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from llama_jax.checked import checked
from llama_jax.layers.linear import weight
from llama_jax.limits import check_limits


@checked
class RMSNorm:
    """Divides by the root of the mean square over the last axis; statistics in float32.

    Attributes:
      eps: added to the mean square, so that nothing is divided by 0.
    """

    eps: float = 1e-5

    __post_init__ = check_limits

    def build(self, name: str | None = None, letter: str = "D") -> nn.Module:
        """A module with one scale a channel."""
        return RMSNormModule(self, letter, name=name)


class RMSNormModule(nn.Module):
    """See `RMSNorm`."""

    config: RMSNorm
    letter: str

    @nn.compact
    def __call__(self, x: Float[Array, "*batch D"]) -> Float[Array, "*batch D"]:
        scale = weight(self, "scale", nn.initializers.ones, self.letter, x.shape[-1:])
        f = x.astype(jnp.float32)
        f = f * jax.lax.rsqrt(jnp.mean(f * f, axis=-1, keepdims=True) + self.config.eps)
        # Cast back before the scale, as Meta's reference does (llama_models/llama3/model.py,
        # RMSNorm).
        return f.astype(x.dtype) * scale.astype(x.dtype)


@checked
class BareNorm:
    """RMSNorm without a scale: of q and k in Llama 4.

    A rotation changes no length, so before the rotary embedding it gives what it gives after it.

    Attributes:
      eps: added to the mean square, so that nothing is divided by 0.
    """

    eps: float = 1e-5

    __post_init__ = check_limits

    def build(self, name: str | None = None, letter: str = "D") -> nn.Module:
        """A module without weights."""
        return BareNormModule(self, name=name)


class BareNormModule(nn.Module):
    """See `BareNorm`."""

    config: BareNorm

    def __call__(self, x: Float[Array, "*batch D"]) -> Float[Array, "*batch D"]:
        f = x.astype(jnp.float32)
        f = f * jax.lax.rsqrt(jnp.mean(f * f, axis=-1, keepdims=True) + self.config.eps)
        return f.astype(x.dtype)


@checked
class LayerNorm:
    """Subtracts the mean and divides by the standard deviation over the last axis; float32.

    Attributes:
      eps: added to the variance, so that nothing is divided by 0.
    """

    eps: float = 1e-5

    __post_init__ = check_limits

    def build(self, name: str | None = None, letter: str = "D") -> nn.Module:
        """A module with one scale and one bias a channel."""
        return LayerNormModule(self, letter, name=name)


class LayerNormModule(nn.Module):
    """See `LayerNorm`."""

    config: LayerNorm
    letter: str

    @nn.compact
    def __call__(self, x: Float[Array, "*batch D"]) -> Float[Array, "*batch D"]:
        scale = weight(self, "scale", nn.initializers.ones, self.letter, x.shape[-1:])
        bias = weight(self, "bias", nn.initializers.zeros, self.letter, x.shape[-1:])
        f = x.astype(jnp.float32)
        f = f - jnp.mean(f, axis=-1, keepdims=True)
        f = f * jax.lax.rsqrt(jnp.mean(f * f, axis=-1, keepdims=True) + self.config.eps)
        return (f * scale + bias).astype(x.dtype)


Norm = RMSNorm | LayerNorm
QKNorm = RMSNorm | LayerNorm | BareNorm
