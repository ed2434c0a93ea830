"""Pictures tile by tile, four patches to a vector: the vision tower of Llama 4.

Each tile is read by itself, as if it were a picture. What comes out of the layers is made shorter
by putting the vectors of neighbouring patches side by side (pixel shuffle, after InternVL,
arXiv:2404.16821), and is then projected to the width of the text.

Source: Meta's reference (llama_models/llama4/vision/encoder.py and embedding.py).
"""

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from jaxtyping import Array, Float

from llama_jax.axes import shard
from llama_jax.checked import checked
from llama_jax.errors import UserError, positive
from llama_jax.layers.inputs import Inputs
from llama_jax.layers.linear import Einsum, lettered
from llama_jax.layers.mlp import ACTIVATIONS
from llama_jax.layers.norm import LayerNorm
from llama_jax.layers.stack import Stack


@checked
class ShuffledVision:
    """Tiles to vectors that stand in a text.

    Attributes:
      width: numbers of a vector in the tower, D.
      out: numbers of a vector that comes out, the width of the text.
      stack: the layers; a rotary embedding in them has two axes, x and y.
      adapter: numbers of a vector between the tower and the text.
      tile: pixels a side.
      patch: pixels a side of what becomes one vector in the tower.
      merge: patches a side that become one vector of the text.
      tiles: the most tiles of a picture, without the one that shows all of it.
      norm: before and after the layers.
    """

    width: int
    out: int
    stack: Stack
    adapter: int = 4096
    tile: int = 336
    patch: int = 14
    merge: int = 2
    tiles: int = 16
    norm: LayerNorm = LayerNorm()

    def __post_init__(self):
        positive(self, "width", "out", "adapter", "tile", "patch", "merge", "tiles")
        if self.tile % (self.patch * self.merge):
            raise UserError(
                f"tile={self.tile} is not a multiple of patch={self.patch} times merge={self.merge}"
            )

    @property
    def side(self) -> int:
        """Patches a side of a tile."""
        return self.tile // self.patch

    @property
    def tokens(self) -> int:
        """Vectors that come out of a tile."""
        return (self.side // self.merge) ** 2

    def build(self, name: str | None = None) -> "ShuffledVisionModule":
        """The module."""
        return ShuffledVisionModule(self, name=name)


class ShuffledVisionModule(nn.Module):
    """See `ShuffledVision`."""

    config: ShuffledVision

    @nn.compact
    def __call__(self, pixels: Float[Array, "I Y X R"], dtype=jnp.float32) -> Float[Array, "I P D"]:
        """Vectors of every tile, row by row; `pixels` are normalised."""
        cfg = self.config
        x = rearrange(
            pixels.astype(dtype), "I (y p) (x q) R -> I (y x) (R p q)", p=cfg.patch, q=cfg.patch
        )
        x = Einsum("IPA,AD->IPD", D=cfg.width, name="patches")(x)
        last = self._param("last", "D", (cfg.width,)).astype(dtype)
        last = jnp.broadcast_to(last, (len(x), 1, cfg.width))
        place = self._param("place", "PD", (cfg.side**2 + 1, cfg.width))
        x = jnp.concatenate([x, last], axis=1) + place.astype(dtype)
        x = cfg.norm.build(name="pre_norm")(x)
        x = cfg.stack.build(name="stack")(x, _places(len(x), cfg.side)).x
        x = cfg.norm.build(name="post_norm")(x)[:, :-1]

        m = cfg.merge
        shuffle = "I (y n x m) D -> I (y x) (n m D)"
        x = rearrange(x, shuffle, n=m, m=m, x=cfg.side // m)
        gelu = ACTIVATIONS["gelu"]
        x = gelu(Einsum("IPA,AD->IPD", D=cfg.adapter, name="adapter")(x))
        x = gelu(Einsum("IPA,AD->IPD", D=cfg.adapter, name="adapter_out")(x))
        return shard(Einsum("IPA,AD->IPD", D=cfg.out, name="out")(x), "IPD")

    def _param(self, name: str, letters: str, shape: tuple[int, ...]) -> Array:
        init = nn.initializers.normal(self.config.width**-0.5)
        return self.param(name, lettered(init, letters), shape, jnp.float32)


def _places(tiles: int, side: int) -> Inputs:
    """Where the vectors are: x and y from 1 on; the last one, of all the tile, is not turned."""
    y, x = np.divmod(np.arange(side**2), side)
    places_P2 = np.concatenate([np.stack([x, y], axis=-1) + 1, np.zeros((1, 2), int)])
    places = jnp.broadcast_to(jnp.asarray(places_P2, jnp.int32), (tiles, *places_P2.shape))
    return Inputs(positions=places, valid=jnp.ones(places.shape[:2], bool))
