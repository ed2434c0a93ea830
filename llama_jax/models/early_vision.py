"""A decoder that reads pictures among the words: Llama 4.

    pixels -- vision tower --> vectors of every tile --+ in the places of <|patch|>
       ids -- embedding ------> vectors ---------------+--> decoder --> logits

Nothing else is new to the decoder: attention stays causal, and positions go on through a picture.
"""

from dataclasses import astuple

import jax.numpy as jnp
from einops import rearrange
from jaxtyping import Array, Float, Int

from llama_jax.checked import checked
from llama_jax.data.marks import Marks
from llama_jax.errors import UserError
from llama_jax.layers.cache import Cache
from llama_jax.models.decoder import Decoder
from llama_jax.models.language import Language
from llama_jax.models.shuffled_vision import ShuffledVision
from llama_jax.models.tokens import Placed


@checked
class EarlyVision:
    """A decoder, and the tower whose vectors stand among those of its words.

    Attributes:
      decoder: reads and writes.
      vision: reads pictures.
      marks: ids of the decoder's vocabulary that stand for pictures.
    """

    decoder: Decoder
    vision: ShuffledVision
    marks: Marks = Marks()

    def __post_init__(self):
        if self.vision.out != self.decoder.width:
            raise UserError(
                f"vision.out={self.vision.out} and decoder.width={self.decoder.width} must be equal"
            )
        if max(astuple(self.marks)) >= self.decoder.vocab:
            raise UserError(
                f"{self.marks} and decoder.vocab={self.decoder.vocab}: ids of the vocabulary were "
                "expected"
            )

    @property
    def language(self) -> Decoder:
        """The part that writes text."""
        return self.decoder

    @property
    def vocab(self) -> int:
        """Ids that may be read."""
        return self.decoder.vocab

    @property
    def context(self) -> int | None:
        """Positions that the decoder was trained for."""
        return self.decoder.context

    @property
    def tied(self) -> bool:
        """Whether the decoder's embedding is its output layer too."""
        return self.decoder.tied

    @property
    def picture(self) -> int:
        """The id that stands for a picture which is still to be laid out."""
        return self.marks.picture

    def empty_cache(self, batch: int, slots: int, dtype=jnp.float32, apart: bool = False) -> Cache:
        """A cache of the decoder for `slots` tokens of each of `batch` rows."""
        return self.decoder.empty_cache(batch, slots, dtype, apart)

    def build(self, name: str | None = None) -> "EarlyVisionModule":
        """The module."""
        return EarlyVisionModule(self, name=name)


class EarlyVisionModule(Language):
    """See `EarlyVision`."""

    config: EarlyVision

    def setup(self):
        self.decoder = self.config.decoder.part()
        self.vision = self.config.vision.build()

    def see(self, pixels: Float[Array, "B M Y X R"], at_BS: Int[Array, "B S"]) -> Placed:
        """What stands in the places of `<|patch|>`: the vectors of all tiles.

        Args:
          pixels: normalised tiles of all pictures of each text, the whole of each picture after its
            tiles; zeros where one is missing.
          at_BS: position of each vector in its text, all of a tile and then those of the next one;
            -1 where it is missing.
        """
        x = self.vision(rearrange(pixels, "B M ... -> (B M) ..."), dtype=self.dtype)
        return Placed(rearrange(x, "(B M) P D -> B (M P) D", B=len(at_BS)), at_BS)

    def __call__(self, ids_BT: Int[Array, "B T"], *seen: Array) -> Float[Array, "B T V"]:
        """Logits in float32 for the token after each one.

        Args:
          ids_BT: the tokens.
          *seen: pixels and positions as for `see`, or nothing.
        """
        if not seen and self.is_initializing():
            raise UserError("the tower's weights are made with a picture; give pixels, at_BS")
        return self.decode(ids_BT, self.see(*seen) if seen else None)[0]
