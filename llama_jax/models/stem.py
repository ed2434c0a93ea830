"""Stems: from pixels to one vector a place, which the vision encoder's blocks then relate."""

import flax.linen as nn
import jax.numpy as jnp
from einops import rearrange
from jaxtyping import Array, Float

from llama_jax.checked import checked
from llama_jax.errors import positive
from llama_jax.layers.linear import Einsum
from llama_jax.layers.mlp import ACTIVATIONS, Activation
from llama_jax.layers.norm import Norm, RMSNorm


@checked
class Patches:
    """A linear map of each tubelet of t x p x p pixels (ViT, ViViT).

    Attributes:
      size: p, pixels a side.
      tubelet: t, frames.
    """

    size: int = 8
    tubelet: int = 1

    def __post_init__(self):
        positive(self, "size", "tubelet")

    def build(self, name: str | None = None) -> nn.Module:
        """The module: video [I,T,Y,X,R] and a width give [I,T',Y',X',D]."""
        return PatchesModule(self, name=name)


class PatchesModule(nn.Module):
    """See `Patches`."""

    config: Patches

    @nn.compact
    def __call__(self, video: Float[Array, "I T Y X R"], width: int) -> Float[Array, "I t y x D"]:
        cut = "I (T t) (Y p) (X q) R -> I T Y X (t p q R)"
        size = self.config.size
        tubelets = rearrange(video, cut, t=self.config.tubelet, p=size, q=size)
        return Einsum("ITYXA,AD->ITYXD", D=width, name="patches")(tubelets)


@checked
class Convolutions:
    """3 x 3 convolutions of stride 2 before the blocks: edges and corners are found in few steps.

    Source: Xiao et al. 2021, "Early convolutions help transformers see better" (arXiv:2106.14881).

    Attributes:
      channels: widths of all convolutions but the last, which gives the encoder's width; a place
        stands for 2^(len(channels) + 1) pixels a side.
      tubelet: t, frames that are joined at the end.
      activation: between two convolutions, after the norm.
      norm: over the channels of one place.
    """

    channels: tuple[int, ...] = (32, 64)
    tubelet: int = 1
    activation: Activation = "silu"
    norm: Norm = RMSNorm()

    @property
    def size(self) -> int:
        """Pixels a side that one place stands for."""
        return 2 ** (len(self.channels) + 1)

    def __post_init__(self):
        positive(self, "tubelet")

    def build(self, name: str | None = None) -> nn.Module:
        """The module: video [I,T,Y,X,R] and a width give [I,T',Y',X',D]."""
        return ConvolutionsModule(self, name=name)


class ConvolutionsModule(nn.Module):
    """See `Convolutions`."""

    config: Convolutions

    @nn.compact
    def __call__(self, video: Float[Array, "I T Y X R"], width: int) -> Float[Array, "I t y x D"]:
        cfg = self.config
        x = video
        for i, channels in enumerate(cfg.channels):
            x = Einsum("ITYXA,AD->ITYXD", D=channels, name=f"conv_{i}")(neighbours(x))
            x = ACTIVATIONS[cfg.activation](cfg.norm.build(name=f"norm_{i}")(x))
        x = rearrange(neighbours(x), "I (T t) Y X A -> I T Y X (t A)", t=cfg.tubelet)
        return Einsum("ITYXA,AD->ITYXD", D=width, name="out")(x)


def neighbours(x: Float[Array, "I T Y X C"]) -> Float[Array, "I T y x A"]:
    """The 3 x 3 places around every second place, side by side: a convolution as a product.

    Zeros stand beyond the edge. On a CPU one large product is faster than XLA's convolution.
    """
    Y, X = x.shape[2:4]
    padded = jnp.pad(x, ((0, 0), (0, 0), (1, 1), (1, 1), (0, 0)))
    shifts = [padded[:, :, i : i + Y : 2, j : j + X : 2] for i in range(3) for j in range(3)]
    return jnp.concatenate(shifts, axis=-1)
