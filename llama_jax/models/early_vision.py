"""A decoder that reads pictures among the words: Llama 4.

    pixels -- vision tower --> vectors of every tile --+ in the places of <|patch|>
       ids -- embedding ------> vectors ---------------+--> decoder --> logits

Nothing else is new to the decoder: attention stays causal, and positions go on through a picture.
"""

from dataclasses import astuple

from einops import rearrange
from jaxtyping import Array, Float, Int

from llama_jax.checked import checked
from llama_jax.data.marks import Marks
from llama_jax.errors import UserError
from llama_jax.models.around import AroundDecoder
from llama_jax.models.decoder import Decoder
from llama_jax.models.language import Language
from llama_jax.models.shuffled_vision import ShuffledVision
from llama_jax.models.tokens import Placed


@checked
class EarlyVision(AroundDecoder):
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
        self.check_widths()
        if max(astuple(self.marks)) >= self.decoder.vocab:
            raise UserError(
                f"{self.marks} and decoder.vocab={self.decoder.vocab}: ids of the vocabulary were "
                "expected"
            )

    @property
    def picture(self) -> int:
        """The id that stands for a picture which is still to be laid out."""
        return self.marks.picture

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
