"""Decoder: a causal language model, alone (LLaMA) or with a memory to read (the seed).

Whether it reads a memory is a matter of its blocks: `Block(cross=...)`.
"""

from dataclasses import dataclass

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from llama_jax.layers.block import Context
from llama_jax.layers.cache import Cache
from llama_jax.layers.linear import Embed, Unembed
from llama_jax.layers.norm import Norm, RMSNorm
from llama_jax.layers.positions import Learned
from llama_jax.layers.stack import Stack
from llama_jax.models.logits import Readout
from llama_jax.models.tokens import Tokens, text_positions


@dataclass(frozen=True)
class Decoder:
    """Token ids, and perhaps a memory, to logits.

    Attributes:
      vocab: V.
      width: D.
      stack: causal blocks.
      tied: the embedding is the output layer too.
      positions: learned positions, or None (rotary ones are in the blocks).
      norm: before the output layer.
      context: positions it was trained for, or None; longer sequences are refused when generating.
    """

    vocab: int
    width: int
    stack: Stack
    tied: bool = True
    positions: Learned | None = None
    norm: Norm = RMSNorm()
    context: int | None = None

    def build(self, name: str | None = None) -> "DecoderModule":
        """The module of a language model by itself."""
        return DecoderModule(self, name=name)

    def part(self, embed: Embed | None = None) -> "DecoderPart":
        """The module within another model; `embed` is a table shared with an encoder."""
        return DecoderPart(self, embed)

    def empty_cache(self, batch: int, slots: int, dtype=jnp.float32) -> Cache:
        """A cache for `slots` tokens of each of `batch` rows."""
        return self.stack.empty_cache(batch, slots, dtype)


class DecoderPart(nn.Module):
    """See `Decoder`."""

    config: Decoder
    shared: Embed | None = None

    def setup(self):
        cfg = self.config
        self.embed = self.shared or Embed(cfg.vocab, cfg.width)
        self.stack = cfg.stack.build()
        self.norm = cfg.norm.build()
        if cfg.positions is not None:
            self.positions = cfg.positions.build()
        if not cfg.tied:
            self.out = Unembed(cfg.vocab, cfg.width)

    def __call__(
        self,
        ids_BT: Int[Array, "B T"],
        memory: Tokens | None = None,
        cache: Cache | None = None,
        positions_BT: Int[Array, "B T"] | None = None,
        valid_BT: Bool[Array, "B T"] | None = None,
        segments_BT: Int[Array, "B T"] | None = None,
        dtype=jnp.float32,
    ) -> tuple[Float[Array, "B T V"], Cache | None]:
        """Logits in float32 for the token after each position; arguments as for `hidden`.

        Returns:
          logits, and the cache with these tokens in it.
        """
        x_BTD, cache = self.hidden(
            ids_BT, memory, cache, positions_BT, valid_BT, segments_BT, dtype
        )
        return self.head(x_BTD), cache

    def hidden(
        self,
        ids_BT: Int[Array, "B T"],
        memory: Tokens | None = None,
        cache: Cache | None = None,
        positions_BT: Int[Array, "B T"] | None = None,
        valid_BT: Bool[Array, "B T"] | None = None,
        segments_BT: Int[Array, "B T"] | None = None,
        dtype=jnp.float32,
        fresh: bool = False,
    ) -> tuple[Float[Array, "B T D"], Cache | None]:
        """What `head` turns into logits.

        Args:
          ids_BT: the tokens.
          memory: what cross-attention reads; with a cache, only in the first call.
          cache: the state after earlier calls; None processes whole sequences.
          positions_BT: places of the tokens; by default they go on from the cache's index.
          valid_BT: tokens that exist (left-padded prompts); all by default.
          segments_BT: documents of packed rows.
          dtype: what is computed in.
          fresh: the cache is empty; attention then need not look at its slots.

        Returns:
          The normalised output of the stack, and the cache with these tokens in it.
        """
        cfg = self.config
        x_BTD = self.embed(ids_BT, dtype)
        if positions_BT is None:
            positions = text_positions(*ids_BT.shape) + (0 if cache is None else cache.index)
        else:
            positions = positions_BT[..., None]
        if cfg.positions is not None:
            x_BTD = x_BTD + self.positions(positions, cfg.width).astype(dtype)
        ctx = Context(
            positions=positions,
            valid=jnp.ones(ids_BT.shape, bool) if valid_BT is None else valid_BT,
            segments=segments_BT,
            memory=None if memory is None else memory.x,
            memory_valid=None if memory is None else memory.valid,
            memory_parts=() if memory is None else memory.parts,
            fresh=fresh,
        )
        x_BTD, cache = self.stack(x_BTD, ctx, cache)
        return self.norm(x_BTD), cache

    def head(self, x_BTD: Float[Array, "B T D"]) -> Float[Array, "B T V"]:
        """Logits in float32."""
        logits_BTV = self.embed.attend(x_BTD) if self.config.tied else self.out(x_BTD)
        return logits_BTV.astype(jnp.float32)

    def readout(
        self,
        ids_BT: Int[Array, "B T"],
        memory: Tokens | None = None,
        positions_BT: Int[Array, "B T"] | None = None,
        segments_BT: Int[Array, "B T"] | None = None,
        dtype=jnp.float32,
    ) -> Readout:
        """Logits of whole sequences for a loss, not formed yet; arguments as for `hidden`."""
        x_BTD, _ = self.hidden(ids_BT, memory, None, positions_BT, None, segments_BT, dtype)
        if self.config.tied:
            return Readout(x_BTD, self.embed.w, "BTD,VD->BTV")
        return Readout(x_BTD, self.out.w, "BTD,DV->BTV")


class DecoderModule(nn.Module):
    """See `Decoder`: a language model by itself, whose parameters are below "decoder"."""

    config: Decoder
    dtype: jnp.dtype = jnp.float32

    def setup(self):
        self.decoder = self.config.part()

    def decode(
        self,
        ids_BT: Int[Array, "B T"],
        memory: None = None,
        cache: Cache | None = None,
        positions_BT: Int[Array, "B T"] | None = None,
        segments_BT: Int[Array, "B T"] | None = None,
        valid_BT: Bool[Array, "B T"] | None = None,
    ) -> tuple[Float[Array, "B T V"], Cache | None]:
        """See `DecoderPart`; there is no memory."""
        return self.decoder(ids_BT, None, cache, positions_BT, valid_BT, segments_BT, self.dtype)

    def readout(
        self,
        ids_BT: Int[Array, "B T"],
        memory: None = None,
        positions_BT: Int[Array, "B T"] | None = None,
        segments_BT: Int[Array, "B T"] | None = None,
    ) -> Readout:
        """What a loss reads; see `DecoderModule`; there is no memory."""
        return self.decoder.readout(ids_BT, None, positions_BT, segments_BT, self.dtype)

    def extend(
        self,
        ids_BT: Int[Array, "B T"],
        cache: Cache,
        valid_BT: Bool[Array, "B T"],
        fresh: bool = False,
    ) -> tuple[Float[Array, "B V"], Cache]:
        """Logits after the last token alone, and the cache with all of them in it.

        Positions go on from the tokens that each row of the cache holds.
        """
        past_B1 = jnp.sum(cache.valid, axis=1, keepdims=True)
        positions_BT = jnp.maximum(past_B1 + jnp.cumsum(valid_BT, axis=1) - 1, 0)
        positions_BT = positions_BT.astype(jnp.int32)
        x_BTD, after = self.decoder.hidden(
            ids_BT, None, cache, positions_BT, valid_BT, None, self.dtype, fresh
        )
        assert after is not None
        return self.decoder.head(x_BTD[:, -1:])[:, 0], after
