"""Image tokenizer: pixels to a grid of words of a code book, and words back to pixels.

    pixels ── convolutions ── blocks ── FSQ ── blocks ── twice as large, again and again ── pixels
               8 x 8 pixels a place      a word a place

With it in a `Multimodal` the words stand behind the text's in the decoder's vocabulary, and drawing
is writing (DALL-E, Ramesh et al. 2021, arXiv:2102.12092; OFA, Wang et al. 2022, arXiv:2202.03052).
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
from einops import rearrange
from jaxtyping import Array, Float, Int, Num

from llama_jax.checked import checked
from llama_jax.errors import UserError, positive
from llama_jax.layers.linear import Einsum
from llama_jax.layers.norm import Norm, RMSNorm
from llama_jax.models.fsq import FSQ
from llama_jax.models.stem import Convolutions


@checked
class ImageTokenizer:
    """An encoder, a code book and a decoder.

    Attributes:
      width: numbers of a vector at a place of the grid.
      stem: from pixels to the grid; the decoder has its channels in the other order.
      quantise: the code book.
      depth: residual blocks on the grid, on each side of the code book.
      norm: at the beginning of a block.
    """

    width: int = 128
    stem: Convolutions = Convolutions((32, 64))
    quantise: FSQ = FSQ()
    depth: int = 2
    norm: Norm = RMSNorm()

    def __post_init__(self):
        positive(self, "width", "depth")

    @property
    def codes(self) -> int:
        """How many words there are."""
        return self.quantise.codes

    def grid(self, side: int) -> int:
        """Places a side of pictures of `side` x `side` pixels.

        Raises:
          UserError: the places do not divide the picture.
        """
        if side % self.stem.size:
            raise UserError(
                f"a picture of {side} x {side} pixels is not cut evenly into places of "
                f"{self.stem.size} x {self.stem.size}; give a multiple of {self.stem.size}"
            )
        return side // self.stem.size

    def build(self, name: str | None = None) -> "ImageTokenizerModule":
        """The module."""
        return ImageTokenizerModule(self, name=name)


class ImageTokenizerModule(nn.Module):
    """See `ImageTokenizer`. P places of a picture are counted row by row."""

    config: ImageTokenizer

    def setup(self):
        cfg = self.config
        self.stem = cfg.stem.build()
        self.read = [Around(cfg.norm, cfg.width) for _ in range(cfg.depth)]
        self.down = Einsum("IYXD,DA->IYXA", A=len(cfg.quantise.levels))
        self.up = Einsum("IYXA,AD->IYXD", D=cfg.width)
        self.write = [Around(cfg.norm, cfg.width) for _ in range(cfg.depth)]
        self.larger = [Larger(cfg.norm, c) for c in (*cfg.stem.channels[::-1], 3)]

    def encode(self, pixels: Num[Array, "I Y X R"]) -> Float[Array, "I y x A"]:
        """The levels of every place; see `FSQ`."""
        self.config.grid(pixels.shape[1])
        self.config.grid(pixels.shape[2])
        x = self.stem(signed(pixels)[:, None], self.config.width)[:, 0]
        for block in self.read:
            x = block(x)
        return self.config.quantise(self.down(x))

    def decode(self, levels: Float[Array, "I y x A"]) -> Float[Array, "I Y X R"]:
        """Pixels, about -1 to 1."""
        x = self.up(levels)
        for block in self.write:
            x = block(x)
        for block in self.larger:
            x = block(x)
        return x

    def reconstruct(self, pixels: Num[Array, "I Y X R"]) -> Float[Array, "I Y X R"]:
        """The pixels that the words of a picture give."""
        return self.decode(self.encode(pixels))

    def codes(self, pixels: Num[Array, "I Y X R"]) -> Int[Array, "I P"]:
        """The words of pictures, 0 to codes - 1; no gradient goes through them."""
        levels = jax.lax.stop_gradient(self.encode(pixels))
        if self.is_initializing():
            self.decode(levels)  # a run that reads the words paints them too: it has all weights
        return rearrange(self.config.quantise.index(levels), "I Y X -> I (Y X)")

    def paint(self, codes_IP: Int[Array, "I P"]) -> Float[Array, "I Y X R"]:
        """The pixels of square pictures of these words, within -1 to 1."""
        side = round(codes_IP.shape[1] ** 0.5)
        grid = rearrange(codes_IP, "I (Y X) -> I Y X", Y=side, X=side)
        return jnp.clip(self.decode(self.config.quantise.levels_of(grid)), -1, 1)


class Around(nn.Module):
    """A residual block that looks at the 3 x 3 places around each."""

    norm: Norm
    width: int

    @nn.compact
    def __call__(self, x: Float[Array, "I Y X D"]) -> Float[Array, "I Y X D"]:
        h = around(self.norm.build(name="norm")(x))
        h = jax.nn.silu(Einsum("IYXA,AF->IYXF", F=self.width, bias=True, name="look")(h))
        return x + Einsum("IYXF,FD->IYXD", D=self.width, name="out")(h)


class Larger(nn.Module):
    """Two places a side of each place, from what is around it: a convolution, then a shuffle.

    Source: Shi et al. 2016, "Real-time single image and video super-resolution" (arXiv:1609.05158).
    """

    norm: Norm
    channels: int

    @nn.compact
    def __call__(self, x: Float[Array, "I Y X D"]) -> Float[Array, "I y x F"]:
        h = around(jax.nn.silu(self.norm.build(name="norm")(x)))
        h = Einsum("IYXA,AF->IYXF", F=4 * self.channels, bias=True, name="look")(h)
        return rearrange(h, "I Y X (p q F) -> I (Y p) (X q) F", p=2, q=2)


def around(x: Float[Array, "I Y X C"]) -> Float[Array, "I Y X A"]:
    """The 3 x 3 places around every place, side by side; zeros stand beyond the edge."""
    Y, X = x.shape[1:3]
    padded = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    shifts = [padded[:, i : i + Y, j : j + X] for i in range(3) for j in range(3)]
    return jnp.concatenate(shifts, axis=-1)


def signed(pixels: Num[Array, "I Y X R"]) -> Float[Array, "I Y X R"]:
    """Bytes as -1 to 1; floats are so already."""
    if pixels.dtype == jnp.uint8:
        return pixels.astype(jnp.float32) / 127.5 - 1
    return pixels.astype(jnp.float32)
