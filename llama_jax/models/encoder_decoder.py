"""The seed's encoder-decoder for text alone: encode once, decode with cross-attention."""

from dataclasses import dataclass

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from llama_jax.layers.cache import Cache
from llama_jax.layers.linear import Embed
from llama_jax.models.decoder import Decoder
from llama_jax.models.logits import Readout
from llama_jax.models.text_encoder import TextEncoder
from llama_jax.models.tokens import Tokens


@dataclass(frozen=True)
class EncoderDecoder:
    """A text encoder and a decoder of the same vocabulary and width.

    Source: the seed document, section 2.2; Vaswani et al. 2017 (arXiv:1706.03762) with LLaMA's
    blocks.

    Attributes:
      encoder: a text encoder, whose normed output is the decoder's memory.
      decoder: a decoder whose blocks have `cross`.
      shared: whether both have one embedding table.
    """

    encoder: TextEncoder
    decoder: Decoder
    shared: bool = True

    def __post_init__(self):
        ours = (self.encoder.vocab, self.encoder.width)
        theirs = (self.decoder.vocab, self.decoder.width)
        if ours != theirs:
            raise ValueError(
                f"encoder (vocab, width) = {ours} and decoder {theirs} must be equal, "
                "for one reads the other's memory and ids"
            )

    def empty_cache(self, batch: int, slots: int, dtype=jnp.float32) -> Cache:
        """A cache of the decoder for `slots` tokens of each of `batch` rows."""
        if self.decoder is None:
            raise ValueError("this model has no decoder; give Multimodal(decoder=...)")
        return self.decoder.empty_cache(batch, slots, dtype)

    def build(self, name: str | None = None) -> "EncoderDecoderModule":
        """The module."""
        return EncoderDecoderModule(self, name=name)


class EncoderDecoderModule(nn.Module):
    """See `EncoderDecoder`."""

    config: EncoderDecoder
    dtype: jnp.dtype = jnp.float32

    def setup(self):
        cfg = self.config
        self.embed = Embed(cfg.encoder.vocab, cfg.encoder.width) if cfg.shared else None
        self.text = cfg.encoder.build(embed=self.embed)
        self.decoder = cfg.decoder.part(self.embed)

    def encode_text(
        self,
        ids_BT: Int[Array, "B T"],
        valid_BT: Bool[Array, "B T"] | None = None,
        types_BT: Int[Array, "B T"] | None = None,
    ) -> Tokens:
        """Tokens of a text; [B,T,D]."""
        return self.text(ids_BT, valid_BT, types_BT, dtype=self.dtype)

    def fuse(self, streams: dict[str, Tokens]) -> dict[str, Tokens]:
        """One modality has nothing to fuse."""
        return streams

    def join(self, streams: dict[str, Tokens]) -> Tokens:
        """The memory is the encoder's normed output."""
        return streams["text"]

    def decode(
        self,
        ids_BT: Int[Array, "B T"],
        memory: Tokens | None,
        cache: Cache | None = None,
        positions_BT: Int[Array, "B T"] | None = None,
        segments_BT: Int[Array, "B T"] | None = None,
        valid_BT: Bool[Array, "B T"] | None = None,
    ) -> tuple[Float[Array, "B T V"], Cache | None]:
        """See `DecoderPart`."""
        return self.decoder(ids_BT, memory, cache, positions_BT, valid_BT, segments_BT, self.dtype)

    def readout(
        self,
        ids_BT: Int[Array, "B T"],
        memory: Tokens | None,
        positions_BT: Int[Array, "B T"] | None = None,
        segments_BT: Int[Array, "B T"] | None = None,
    ) -> Readout:
        """What a loss reads; see `DecoderPart`."""
        return self.decoder.readout(ids_BT, memory, positions_BT, segments_BT, self.dtype)
