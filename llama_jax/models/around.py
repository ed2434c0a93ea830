"""What the configs of models have in common that put something around a decoder."""

from typing import Any

import jax.numpy as jnp

from llama_jax.errors import UserError
from llama_jax.layers.cache import Cache
from llama_jax.models.decoder import Decoder


class AroundDecoder:
    """A decoder that looks: what is asked of its config as of a language model's."""

    decoder: Decoder
    vision: Any

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

    def empty_cache(self, batch: int, slots: int, dtype=jnp.float32, apart: bool = False) -> Cache:
        """A cache of the decoder for `slots` tokens of each of `batch` rows."""
        return self.decoder.empty_cache(batch, slots, dtype, apart)

    def check_widths(self) -> None:
        """Checks that what the tower gives is as wide as the text.

        Raises:
          UserError: it is not.
        """
        if self.vision.out != self.decoder.width:
            raise UserError(
                f"vision.out={self.vision.out} and decoder.width={self.decoder.width} must be equal"
            )
