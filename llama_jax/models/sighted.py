"""A language model with eyes: its upper layers look at pictures, its lower ones only read.

    pixels ── vision encoder ── norm ──────────────┐
       ids ── decoder.stack (lower layers) ── eyes (upper layers, cross-attention) ── norm ── logits

The language model may stay frozen (Flamingo, Alayrac et al. 2022, arXiv:2204.14198; Llama
3.2-Vision). Without a picture the cross-attention is not there, and with one that is marked absent
it adds zeros, so the language model is what it was, to the bit. No gradient passes below the eyes,
and what the lower layers make of a text is made once for all pictures that it is asked about.
"""

from dataclasses import replace
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Bool, Num

from llama_jax.checked import checked
from llama_jax.errors import UserError
from llama_jax.layers.cache import Cache
from llama_jax.layers.inputs import Memory
from llama_jax.layers.norm import Norm, RMSNorm
from llama_jax.layers.output import Output
from llama_jax.layers.stack import Stack
from llama_jax.models.decoder import Decoder
from llama_jax.models.language import Language
from llama_jax.models.tokens import Tokens, concatenate, repeat_rows
from llama_jax.models.vision import VisionEncoder


@checked
class Sighted:
    """A decoder, the layers above it that look, and what makes tokens of pictures.

    Attributes:
      decoder: the language model without its upper layers; its norm and its output come last.
      eyes: the upper layers, with cross-attention (`Gated`) to the pictures.
      vision: image and video encoder, of any width.
      norm: what pictures pass before they are looked at, or None.
    """

    decoder: Decoder
    eyes: Stack
    vision: VisionEncoder
    norm: Norm | None = RMSNorm()

    def __post_init__(self):
        if any(getattr(block, "cross", None) is None for block in self.eyes.pattern):
            raise UserError("eyes: every block needs cross-attention, e.g. cross=Gated(...)")

    @property
    def language(self) -> Decoder:
        """The part that writes text."""
        return self.decoder

    @property
    def causal(self) -> dict[str, tuple[int, Stack]]:
        """Where a causal model's layers go: the first of each stack, by its path."""
        return {
            "decoder/stack": (0, self.decoder.stack),
            "eyes": (self.decoder.stack.layers, self.eyes),
        }

    def empty_cache(self, batch: int, slots: int, dtype=jnp.float32, apart: bool = False) -> Cache:
        """A cache for `slots` tokens of each of `batch` rows; see `Stack.empty_cache`."""
        lower = self.decoder.empty_cache(batch, slots, dtype, apart)
        upper = self.eyes.empty_cache(batch, slots, dtype, apart)
        return replace(lower, layers=(lower.layers, upper.layers))

    def build(self, name: str | None = None) -> "SightedModule":
        """The module."""
        return SightedModule(self, name=name)


class SightedModule(Language):
    """See `Sighted`."""

    config: Sighted

    def setup(self):
        cfg = self.config
        self.decoder = cfg.decoder.part()
        self.eyes = cfg.eyes.build()
        self.vision = cfg.vision.build()
        if cfg.norm is not None:
            self.norm = cfg.norm.build()

    def encode_image(
        self, pixels: Num[Array, "I ... Y X R"], valid_I: Bool[Array, " I"] | None = None
    ) -> Tokens:
        """Tokens of images [I,Y,X,R] or videos [I,T,Y,X,R]; [I,P,D]."""
        return self.vision(pixels, valid_I, dtype=self.dtype)

    def fuse(self, streams: dict[str, Tokens]) -> dict[str, Tokens]:
        """Pictures as they are: only the layers of the language model mix them with text."""
        return streams

    def join(self, streams: dict[str, Tokens]) -> Tokens:
        """All pictures in one memory."""
        joined = concatenate(list(streams.values()))
        return joined if self.config.norm is None else joined.with_x(self.norm(joined.x))

    def hidden(
        self,
        tokens: Tokens,
        memory: Tokens | Memory | None = None,
        cache: Cache | None = None,
        taps: tuple[int, ...] = (),
        fresh: bool = False,
    ) -> Output:
        """See `Language.hidden`. A memory of more rows: so many pictures for each text.

        Raises:
          UserError: taps, which only one stack has; or rows that do not divide those of the memory.
        """
        if taps:
            raise UserError(f"taps={taps}: a model with eyes has two stacks, and gives none")
        read = memory.memory if isinstance(memory, Tokens) else memory
        below, above = (None, None) if cache is None else _apart(cache)
        out = self.decoder.stack(tokens.x, tokens.inputs, None, below, (), fresh)
        tokens = tokens.with_x(out.x)
        if read is not None and read.x is not None and len(read.x) != len(tokens.x):
            tokens = repeat_rows(tokens, len(read.x))
        seen = self.eyes(tokens.x, tokens.inputs, read, above, (), fresh)
        if seen.cache is not None and out.cache is not None:
            seen = replace(
                seen, cache=replace(seen.cache, layers=(out.cache.layers, seen.cache.layers))
            )
        return seen.with_x(self.decoder.norm(seen.x))


def _apart(cache: Cache) -> tuple[Any, Any]:
    """The cache of the lower layers, which see no pictures, and that of the upper ones."""
    lower, upper = cache.layers
    return replace(cache, layers=lower, memory=None), replace(cache, layers=upper)
