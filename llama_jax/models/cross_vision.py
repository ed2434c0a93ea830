"""A decoder that looks at pictures through cross-attention: Llama 3.2-Vision.

    pixels -- vision tower --> vectors of every tile --+ memory
       ids -- embedding ------> decoder: self, self, self, cross, self, ... --> logits

Of a text without pictures the cross-attention layers are left out, and the decoder is Llama 3.
"""

import jax.numpy as jnp
from einops import rearrange, repeat
from jaxtyping import Array, Bool, Float, Int

from llama_jax.checked import checked
from llama_jax.errors import UserError, positive
from llama_jax.layers.cache import Cache
from llama_jax.layers.inputs import Memory
from llama_jax.layers.linear import Embed
from llama_jax.models.around import AroundDecoder
from llama_jax.models.decoder import Decoder
from llama_jax.models.language import Language
from llama_jax.models.tiled_vision import TiledVision
from llama_jax.models.tokens import Placed, Tokens


@checked
class CrossVision(AroundDecoder):
    """A decoder with cross-attention layers, and the tower whose vectors they read.

    Attributes:
      decoder: writes; some of its blocks have `cross` and no `attention`.
      vision: reads pictures.
      extra: ids after those of the decoder that may be read and are never written; the first of
        them stands for a picture.
    """

    decoder: Decoder
    vision: TiledVision
    extra: int = 8

    def __post_init__(self):
        positive(self, "extra")
        self.check_widths()

    @property
    def vocab(self) -> int:
        """Ids that may be read."""
        return self.decoder.vocab + self.extra

    @property
    def picture(self) -> int:
        """The id that stands for a picture."""
        return self.decoder.vocab

    def build(self, name: str | None = None) -> "CrossVisionModule":
        """The module."""
        return CrossVisionModule(self, name=name)


class CrossVisionModule(Language):
    """See `CrossVision`."""

    config: CrossVision

    def setup(self):
        cfg = self.config
        self.decoder = cfg.decoder.part()
        self.extra = Embed(cfg.extra, cfg.decoder.width)
        self.vision = cfg.vision.build()

    def embed(
        self,
        ids_BT: Int[Array, "B T"],
        cache: Cache | None = None,
        positions_BT: Int[Array, "B T"] | None = None,
        valid_BT: Bool[Array, "B T"] | None = None,
        segments_BT: Int[Array, "B T"] | None = None,
        placed: Placed | None = None,
    ) -> Tokens:
        """See `Language.embed`; ids from the decoder's vocabulary on have a table of their own."""
        V = self.config.decoder.vocab
        known = super().embed(
            jnp.minimum(ids_BT, V - 1), cache, positions_BT, valid_BT, segments_BT, placed
        )
        extra_BTD = self.extra(jnp.maximum(ids_BT - V, 0), self.dtype)
        return known.with_x(jnp.where((ids_BT >= V)[..., None], extra_BTD, known.x))

    def see(
        self,
        pixels: Float[Array, "B I M Y X R"],
        grid_BI2: Int[Array, "B I 2"],
        spans_BI2: Int[Array, "B I 2"],
    ) -> Memory:
        """What cross-attention reads: the vectors of all tiles, and who sees which picture.

        Args:
          pixels: normalised tiles; zeros where a tile or a picture is missing.
          grid_BI2: rows and columns of tiles of each picture; (1, 1) where it is missing.
          spans_BI2: positions of the text that see each picture, first and end, as `tiles.sees`
            gives them; (0, 0) where it is missing.
        """
        rows = len(pixels)
        x = self.vision(
            rearrange(pixels, "B I ... -> (B I) ..."),
            rearrange(grid_BI2, "B I A -> (B I) A"),
            dtype=self.dtype,
        )
        tiles, tokens = x.shape[1:3]
        first_BS, end_BS = (
            repeat(spans_BI2[..., i], "B I -> B (I M P)", M=tiles, P=tokens) for i in range(2)
        )
        there_BIM = jnp.arange(tiles) < jnp.prod(grid_BI2, axis=-1, keepdims=True)
        return Memory(
            rearrange(x, "(B I) M P D -> B (I M P) D", B=rows),
            repeat(there_BIM, "B I M -> B (I M P)", P=tokens),
            first=first_BS,
            end=end_BS,
        )

    def __call__(self, ids_BT: Int[Array, "B T"], *seen: Array) -> Float[Array, "B T V"]:
        """Logits in float32 for the token after each one.

        Args:
          ids_BT: the tokens.
          *seen: pixels, grid and spans as for `see`, or nothing.
        """
        if not seen and self.is_initializing():
            raise UserError("the tower's weights are made with a picture; give pixels, grid, spans")
        memory = self.see(*seen) if seen else None
        return self.head(self.hidden(self.embed(ids_BT), memory).x)
