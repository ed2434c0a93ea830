"""Decoder: a causal language model, alone (LLaMA) or with a memory to read (the seed).

Whether it reads a memory is a matter of its blocks: `Block(cross=...)`.
"""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from llama_jax.checked import checked
from llama_jax.errors import positive
from llama_jax.layers.cache import Cache
from llama_jax.layers.inputs import Memory
from llama_jax.layers.linear import Embed, Unembed
from llama_jax.layers.norm import Norm, RMSNorm
from llama_jax.layers.output import Output
from llama_jax.layers.positions import Learned
from llama_jax.layers.stack import Stack
from llama_jax.models.language import Language
from llama_jax.models.logits import Logits
from llama_jax.models.tokens import Placed, Tokens, text_positions


@checked
class Decoder:
    """Token ids, and perhaps a memory, to logits.

    Attributes:
      vocab: how many token ids there are, V.
      width: numbers of a vector between layers, D.
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

    def __post_init__(self):
        positive(self, "vocab", "width", "context")

    def __getattr__(self, name: str) -> Any:
        # The config of a language model had its decoder in a field once.
        now = "; the model is the decoder now, as in model.stack" if name == "decoder" else ""
        raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}{now}")

    @property
    def language(self) -> "Decoder":
        """The part that writes text: all of it."""
        return self

    def build(self, name: str | None = None) -> "DecoderModule":
        """The module of a language model by itself."""
        return DecoderModule(self, name=name)

    def part(self, embed: Embed | None = None) -> "DecoderPart":
        """The module within another model; `embed` is a table shared with an encoder."""
        return DecoderPart(self, embed)

    def empty_cache(self, batch: int, slots: int, dtype=jnp.float32, apart: bool = False) -> Cache:
        """A cache for `slots` tokens of each of `batch` rows; see `Stack.empty_cache`."""
        return self.stack.empty_cache(batch, slots, dtype, apart)


class DecoderPart(nn.Module):
    """See `Decoder`: what `Language` is made of."""

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

    def tokens(
        self,
        ids_BT: Int[Array, "B T"],
        positions_BT: Int[Array, "B T"] | None = None,
        valid_BT: Bool[Array, "B T"] | None = None,
        segments_BT: Int[Array, "B T"] | None = None,
        start: Int[Array, "*rows"] | None = None,
        placed: Placed | None = None,
        dtype: Any = jnp.float32,
    ) -> Tokens:
        """See `Language.embed`; `start` is the position of the first token, 0 by default."""
        cfg = self.config
        x_BTD = self.embed(ids_BT, dtype)
        if placed is not None:
            x_BTD = placed.over(x_BTD)
        if positions_BT is None:
            first = 0 if start is None else jnp.reshape(start, (-1, 1, 1))
            positions = text_positions(*ids_BT.shape) + first
        else:
            positions = positions_BT[..., None]
        if cfg.positions is not None:
            x_BTD = x_BTD + self.positions(positions, cfg.width).astype(dtype)
        valid = jnp.ones(ids_BT.shape, bool) if valid_BT is None else valid_BT
        return Tokens(x_BTD, valid, positions, segments_BT)

    def hidden(
        self,
        tokens: Tokens,
        memory: Tokens | Memory | None = None,
        cache: Cache | None = None,
        taps: tuple[int, ...] = (),
        fresh: bool = False,
    ) -> Output:
        """See `Language.hidden`; x is normalised, taps are not."""
        read = memory.memory if isinstance(memory, Tokens) else memory
        out = self.stack(tokens.x, tokens.inputs, read, cache, taps, fresh)
        return out.with_x(self.norm(out.x))

    def head(self, x: Float[Array, "*batch D"], formed: bool = True) -> Any:
        """See `Language.head`."""
        if not formed:
            if self.config.tied:
                return Logits(x, self.embed.w, "BTD,VD->BTV")
            return Logits(x, self.out.w, "BTD,DV->BTV")
        return (self.embed.attend(x) if self.config.tied else self.out(x)).astype(jnp.float32)


class DecoderModule(Language):
    """See `Decoder`: a language model by itself, whose parameters are below "decoder"."""

    config: Decoder

    def setup(self):
        self.decoder = self.config.part()
