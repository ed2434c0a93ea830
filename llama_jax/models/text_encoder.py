"""Text encoder: bidirectional LLaMA blocks over token vectors."""

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int

from llama_jax.axes import shard
from llama_jax.checked import checked
from llama_jax.errors import positive
from llama_jax.layers.inputs import Inputs
from llama_jax.layers.linear import Embed
from llama_jax.layers.norm import Norm, RMSNorm
from llama_jax.layers.positions import Learned
from llama_jax.layers.stack import Stack
from llama_jax.limits import check_limits
from llama_jax.models.tokens import Tokens, text_positions


@checked
class TextEncoder:
    """Token ids to Tokens.

    Attributes:
      vocab: how many token ids there are, V.
      width: numbers of a vector between layers, D.
      stack: bidirectional blocks.
      types: kinds of token (sentence A, sentence B) that have a vector each; 0 for none.
      positions: learned positions, or None (rotary ones are in the blocks).
      norm: after the last block.
    """

    vocab: int
    width: int
    stack: Stack
    types: int = 0
    positions: Learned | None = None
    norm: Norm = RMSNorm()

    def __post_init__(self):
        positive(self, "vocab", "width")
        check_limits(self)

    def build(self, name: str | None = None, embed: Embed | None = None) -> "TextEncoderModule":
        """The module; `embed` is a table shared with a decoder."""
        return TextEncoderModule(self, embed, name=name)


class TextEncoderModule(nn.Module):
    """See `TextEncoder`."""

    config: TextEncoder
    shared: Embed | None = None

    @nn.compact
    def __call__(
        self,
        ids_BT: Int[Array, "B T"],
        valid_BT: Bool[Array, "B T"] | None = None,
        types_BT: Int[Array, "B T"] | None = None,
        segments_BT: Int[Array, "B T"] | None = None,
        dtype=jnp.float32,
    ) -> Tokens:
        cfg = self.config
        embed = self.shared or Embed(cfg.vocab, cfg.width, name="embed")
        x_BTD = embed(ids_BT, dtype)
        if cfg.types:
            # A text of one sentence is all sentence A.
            types = jnp.zeros_like(ids_BT) if types_BT is None else types_BT
            x_BTD = x_BTD + Embed(cfg.types, cfg.width, name="types")(types, dtype)
        positions = text_positions(*ids_BT.shape)
        if cfg.positions is not None:
            x_BTD = x_BTD + cfg.positions.build(name="positions")(positions, cfg.width).astype(
                dtype
            )
        valid = jnp.ones(ids_BT.shape, bool) if valid_BT is None else valid_BT
        inputs = Inputs(positions=positions, valid=valid, segments=segments_BT)
        x_BTD = cfg.stack.build(name="stack")(x_BTD, inputs).x
        x_BTD = shard(cfg.norm.build(name="norm")(x_BTD), "BTD")
        return Tokens(x_BTD, valid, positions, segments_BT)
