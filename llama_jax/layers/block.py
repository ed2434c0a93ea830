"""Block: normalisation, self-attention, cross-attention, feed-forward, each with a residual.

x ── norm ─ self-attention ─(+)── norm ─ cross-attention ─(+)── norm ─ feed-forward ─(+)──
└───────────────────────────┘└──────────────────────────┘└────────────────────────┘
"""

import itertools
from dataclasses import dataclass, field

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Bool, Float, Int

from llama_jax.kernels.attention.mask import Mask
from llama_jax.layers.attention import Attention, AttentionModule
from llama_jax.layers.cache import KV, LayerCache, Slots, write
from llama_jax.layers.linear import lettered
from llama_jax.layers.mlp import FeedForward
from llama_jax.layers.norm import Norm, RMSNorm

# What rematerialisation may be told to store (`Stack.saved`), and its shape in numbers a token.
SAVED = {
    "attention": "what attention gathered, [N,H] a token; with a flash kernel its sums too, [N]",
    "attn": "the output of self-attention, [D] a token",
    "cross": "the output of cross-attention, [D] a token",
    "hidden": "the inner vector of the feed-forward, [F] a token",
    "ffn": "the output of the feed-forward, [D] a token",
}


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Context:
    """What all blocks of a stack share in one call.

    Attributes:
      positions: places of the tokens that go through the stack.
      valid: which of them exist.
      segments: their documents in packed rows, or None.
      memory: what cross-attention sees, or None (no memory, or its keys are cached).
      memory_valid: which memory tokens exist.
      slot_positions: positions of the cache's slots, or None without a cache.
      slot_valid: which slots hold a token.
      index: the slot where this call's first token goes.
      bias: added to the scores of self-attention.
      fresh: the cache held nothing before this call, so its tokens see only each other.
      frames: frames of video; tokens are frame by frame.
      parts: lengths of the streams joined in this sequence (see `Mask.parts`).
      memory_parts: the same for the memory.
    """

    positions: Int[Array, "B T A"]
    valid: Bool[Array, "B T"]
    segments: Int[Array, "B T"] | None = None
    memory: Float[Array, "B S D"] | None = None
    memory_valid: Bool[Array, "B S"] | None = None
    slot_positions: Int[Array, "B S"] | None = None
    slot_valid: Bool[Array, "B S"] | None = None
    index: Int[Array, ""] | None = None
    bias: Float[Array, "N T S"] | None = None
    fresh: bool = field(default=False, metadata={"static": True})
    frames: int = field(default=1, metadata={"static": True})
    parts: tuple[int, ...] = field(default=(), metadata={"static": True})
    memory_parts: tuple[int, ...] = field(default=(), metadata={"static": True})


@dataclass(frozen=True)
class Gated:
    """Cross-attention scaled by tanh(gate), a learned scalar that starts at `start`.

    Source: Flamingo (Alayrac et al. 2022, arXiv:2204.14198), section 3.1.2; Llama 3.2-Vision.
    """

    attention: Attention
    start: float = 0.0


@dataclass(frozen=True)
class Merged:
    """Self-attention sees [self; memory] with one softmax instead (T5Gemma 2)."""


Cross = Attention | Gated | Merged


@dataclass(frozen=True)
class Block:
    """One layer of a Transformer.

    Attributes:
      attention: self-attention.
      ffn: feed-forward.
      cross: how it sees the memory, or None.
      norm: before each part (pre-norm).
      post_norm: a second norm after each part, before the residual sum (T5Gemma).
      dropout: share of a part's output that is dropped in training.
    """

    attention: Attention
    ffn: FeedForward
    cross: Cross | None = None
    norm: Norm = RMSNorm()
    post_norm: bool = False
    dropout: float = 0.0

    def build(self, name: str | None = None) -> "BlockModule":
        """The module."""
        return BlockModule(self, name=name)

    def empty_cache(self, batch: int, slots: int, dtype=jnp.float32) -> LayerCache:
        """A cache of this block that holds nothing yet."""
        heads, head_dim = self.attention.kv_heads, self.attention.head_dim
        return LayerCache(own=Slots.empty(batch, heads, slots, head_dim, dtype))


class BlockModule(nn.Module):
    """See `Block`."""

    config: Block

    @nn.compact
    def __call__(
        self, x: Float[Array, "B T D"], cache: LayerCache | None, ctx: Context
    ) -> tuple[Float[Array, "B T D"], LayerCache | None]:
        cfg = self.config
        attn = cfg.attention.build(name="attn")
        h = self._norm("attn_norm")(x)
        own, slots, cross = attn.keys(h, ctx.positions), None, None
        mask = cfg.attention.structure & _self_mask(cfg.attention, ctx)
        if cache is not None:
            slots, cross = write(cache, own, ctx.index), cache.cross
            own = own if ctx.fresh else slots.kv
        if isinstance(cfg.cross, Merged):
            if ctx.memory is not None:
                cross = _memory_keys(attn, ctx.memory, ctx.memory_parts)
            own, mask = _append(own, mask, cross, ctx, x.shape[1])
        x = self._add(x, attn(h, own, mask, ctx.positions, ctx.bias), "attn")

        if isinstance(cfg.cross, Attention | Gated):
            inner = cfg.cross.attention if isinstance(cfg.cross, Gated) else cfg.cross
            attend = inner.build(name="cross")
            if ctx.memory is not None:
                cross = _memory_keys(attend, ctx.memory, ctx.memory_parts)
            if cross is not None:
                x = self._add(x, self._cross(attend, x, cross, ctx), "cross")

        x = self._add(x, cfg.ffn.build(name="ffn")(self._norm("ffn_norm")(x)), "ffn")
        return x, None if cache is None else LayerCache(own=slots, cross=cross)

    def _cross(self, attend: AttentionModule, x: jax.Array, kv: KV, ctx: Context) -> jax.Array:
        y = attend(self._norm("cross_norm")(x), kv, _memory_mask(ctx), ctx.positions)
        if isinstance(self.config.cross, Gated):
            init = lettered(nn.initializers.constant(self.config.cross.start), "")
            y = y * jnp.tanh(self.param("gate", init, (), jnp.float32)).astype(y.dtype)
        return y

    def _norm(self, name: str) -> nn.Module:
        return self.config.norm.build(name=name)

    def _add(self, x: jax.Array, y: jax.Array, part: str) -> jax.Array:
        y = checkpoint_name(y, part)
        if self.config.post_norm:
            y = self._norm(f"{part}_post_norm")(y)
        if self.config.dropout and self.has_rng("dropout"):
            keep = jax.random.bernoulli(self.make_rng("dropout"), 1 - self.config.dropout, y.shape)
            y = jnp.where(keep, y / (1 - self.config.dropout), 0).astype(y.dtype)
        return x + y


def _self_mask(attention: Attention, ctx: Context) -> Mask:
    """The data of the self-attention mask: padding and packing, or the slots of the cache."""
    if ctx.slot_positions is None or ctx.fresh:
        # The left padding of a row shifts all its tokens alike; only chunks begin at positions.
        shifted = ctx.fresh and attention.chunk is not None
        return Mask(
            q_positions=ctx.positions[..., 0] if shifted else None,
            kv_positions=ctx.positions[..., 0] if shifted else None,
            kv_valid=ctx.valid,
            q_segments=ctx.segments,
            kv_segments=ctx.segments,
            parts=ctx.parts,
        )
    if not attention.structure.local:
        return Mask(kv_valid=ctx.slot_valid)
    return Mask(
        q_positions=ctx.positions[..., 0], kv_positions=ctx.slot_positions, kv_valid=ctx.slot_valid
    )


def _memory_mask(ctx: Context) -> Mask:
    return Mask(kv_valid=ctx.memory_valid, parts=ctx.memory_parts)


def _append(own: KV, mask: Mask, cross: KV | None, ctx: Context, T: int) -> tuple[KV, Mask]:
    """Puts the memory's keys behind the sequence's own; all queries see the memory."""
    if cross is None or ctx.memory_valid is None:
        return own, mask
    S, M = own.k.shape[1], cross.k.shape[1]
    seen = mask.dense(T, S)
    memory = jnp.broadcast_to(ctx.memory_valid[:, None, :], (ctx.memory_valid.shape[0], T, M))
    seen = jnp.broadcast_to(seen, (memory.shape[0], T, S))
    both = jax.tree.map(lambda a, b: jnp.concatenate([a, b], axis=1), own, cross)
    parts = (*(ctx.parts or (S,)), *(ctx.memory_parts or (M,)))
    return both, Mask(allow=jnp.concatenate([seen, memory], axis=2), parts=parts)


def _memory_keys(
    attention: AttentionModule, memory: Float[Array, "B S D"], parts: tuple[int, ...]
) -> KV:
    """The memory's keys and values, stream by stream.

    A matrix product over more rows may round its rows differently, so each stream has a product of
    its own: then a stream that is absent changes no bit of the others. The memory has no rotary
    positions of its own; position 0 turns nothing.
    """
    streams = jnp.split(memory, list(itertools.accumulate(parts))[:-1], axis=1)
    keys = [attention.keys(x, jnp.zeros((*x.shape[:2], 1), jnp.int32)) for x in streams]
    return keys[0] if len(keys) == 1 else jax.tree.map(lambda *a: jnp.concatenate(a, 1), *keys)
