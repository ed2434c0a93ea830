"""Pixels as something to predict: patches of a picture, hiding some of them, and the head.

A patch is what one token of the vision encoder stands for at its end: t frames of p x p pixels. It
is hidden before the stem, under a patch of learned pixels, so that nothing of it passes through
any stem, convolutions too; for a linear stem this is a learned token in its place.
"""

import flax.linen as nn
import jax.numpy as jnp
from einops import rearrange
from jaxtyping import Array, Bool, Float

from llama_jax.layers.linear import Einsum, lettered
from llama_jax.models.vision import VisionEncoder

# (t p q R): as in MAE, colours of one pixel side by side; "A" are the numbers of a patch.
CUT = "I (T t) (Y p) (X q) R -> I (T Y X) (t p q R)"
JOIN = "I (T Y X) (t p q R) -> I (T t) (Y p) (X q) R"
EPS = 1e-6  # MAE's, beside the variance


def patches(video: Float[Array, "I T Y X R"], frames: int, side: int) -> Float[Array, "I P A"]:
    """The pixels of every patch, in the order of the encoder's tokens."""
    return rearrange(video, CUT, t=frames, p=side, q=side)


def normalised(x_IPA: Float[Array, "I P A"]) -> Float[Array, "I P A"]:
    """Each patch with mean 0 and variance 1 (He et al. 2021, arXiv:2111.06377, section 3).

    The variance is that of a sample, divided by one less than their number, as in MAE's code.
    """
    mean = jnp.mean(x_IPA, axis=-1, keepdims=True)
    variance = jnp.var(x_IPA, axis=-1, keepdims=True, ddof=1)
    return (x_IPA - mean) / jnp.sqrt(variance + EPS)


class PixelModule(nn.Module):
    """Hides patches of the pictures that this encoder reads, and predicts their pixels.

    Attributes:
      vision: the encoder's config.
      colours: numbers of a pixel, R.
    """

    vision: VisionEncoder
    colours: int = 3

    def setup(self):
        frames, side = self.vision.patch
        self.numbers = frames * side * side * self.colours
        self.cover = _Cover(self.numbers)
        self.out = Einsum("BTD,DA->BTA", bias=True, A=self.numbers)

    def hide(
        self, video: Float[Array, "I T Y X R"], hidden_IP: Bool[Array, "I P"]
    ) -> Float[Array, "I T Y X R"]:
        """The pictures with the learned patch over the hidden ones."""
        frames, side = self.vision.patch
        x_IPA = patches(video, frames, side)
        x_IPA = jnp.where(hidden_IP[..., None], self.cover().astype(video.dtype), x_IPA)
        _, T, Y, X, _ = video.shape
        sizes = {"T": T // frames, "Y": Y // side, "X": X // side, "p": side, "q": side}
        return rearrange(x_IPA, JOIN, t=frames, **sizes)

    def __call__(self, x_BTD: Float[Array, "B T D"]) -> Float[Array, "B T A"]:
        """The pixels of the patch of each token."""
        return self.out(x_BTD).astype(jnp.float32)


class _Cover(nn.Module):
    """The pixels of a hidden patch."""

    numbers: int

    @nn.compact
    def __call__(self) -> Float[Array, " A"]:
        zeros = lettered(nn.initializers.zeros, "A")
        return self.param("value", zeros, (self.numbers,), jnp.float32)
