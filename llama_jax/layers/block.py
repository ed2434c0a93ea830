"""Block: self-attention, cross-attention and feed-forward, each with a norm and a residual.

x ── norm ─ self-attention ─(+)── norm ─ cross-attention ─(+)── norm ─ feed-forward ─(+)──
└───────────────────────────┘└──────────────────────────┘└────────────────────────┘

Any of the three may be absent, and any may be `Gated`.
"""

import itertools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Float

from llama_jax.checked import checked
from llama_jax.errors import UserError
from llama_jax.kernels.attention.mask import Mask
from llama_jax.layers.attention import Attention, AttentionModule
from llama_jax.layers.cache import LayerCache
from llama_jax.layers.experts import Experts
from llama_jax.layers.inputs import Inputs, Memory
from llama_jax.layers.linear import lettered
from llama_jax.layers.mlp import FeedForward
from llama_jax.layers.norm import Norm, RMSNorm
from llama_jax.layers.slots import KV, Seen
from llama_jax.limits import check_limits

# What rematerialisation may be told to store (`Stack.saved`), and its shape in numbers a token.
SAVED = {
    "input": "what a block is given, [D] a token",
    "q": "the queries as attention takes them, [N,H] a token",
    "k": "the keys as attention takes them, [K,H] a token",
    "v": "the values, [K,H] a token",
    "attention": "what attention gathered, [N,H] a token; with a flash kernel its sums too, [N]",
    "attn": "the output of self-attention, [D] a token",
    "cross": "the output of cross-attention, [D] a token",
    "hidden": "the inner vector of the feed-forward, [F] a token",
    "ffn": "the output of the feed-forward, [D] a token",
}
GATES = {"attn": "attn_gate", "cross": "gate", "ffn": "ffn_gate"}


@checked
class Gated:
    """A part scaled by tanh(gate), a learned scalar that starts at `start`.

    Source: Flamingo (Alayrac et al. 2022, arXiv:2204.14198), section 3.1.2; Llama 3.2-Vision.

    Attributes:
      part: what is scaled.
      start: the scalar at first.
    """

    part: Attention | FeedForward | Experts
    start: float = 0.0


@checked
class Seeing(Gated):
    """Gated, and nothing at all for a token that sees nothing of the memory, or without one.

    Source: the feed-forward after cross-attention in Llama 3.2-Vision, as Meta's reference has it
    (llama_models/llama3/multimodal/model.py). Cross-attention itself is 0 for such a token anyway.
    """


@checked
class Merged:
    """Self-attention sees [self; memory] with one softmax instead (T5Gemma 2)."""


Cross = Attention | Gated | Merged


@checked
class Block:
    """One layer of a Transformer.

    Attributes:
      attention: self-attention, or None.
      ffn: feed-forward, or None.
      cross: how it sees the memory, or None.
      norm: before each part (pre-norm).
      post_norm: a second norm after each part, before the residual sum (T5Gemma).
      dropout: share of a part's output that is dropped in training.
    """

    attention: Attention | Gated | None
    ffn: FeedForward | Experts | Gated | None
    cross: Cross | None = None
    norm: Norm = RMSNorm()
    post_norm: bool = False
    dropout: float = 0.0

    def __post_init__(self):
        check_limits(self)
        if self.attention is None and isinstance(self.cross, Merged):
            raise UserError(
                "cross=Merged() joins the memory to self-attention, and attention=None; give "
                "attention, or an Attention as cross"
            )

    def build(self, name: str | None = None) -> "BlockModule":
        """The module."""
        return BlockModule(self, name=name)

    def empty_cache(
        self, batch: int, slots: int, dtype=jnp.float32, whole: bool = False
    ) -> LayerCache:
        """A cache of this block that holds nothing yet; see `Attention.cache`."""
        attention = inner(self.attention)
        return LayerCache(attention and attention.cache(batch, slots, dtype, whole))


def inner(part: Any) -> Any:
    """A part without its gate."""
    return part.part if isinstance(part, Gated) else part


class BlockModule(nn.Module):
    """See `Block`."""

    config: Block

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "B T D"],
        cache: LayerCache | None,
        inputs: Inputs,
        memory: Memory | None = None,
    ) -> tuple[Float[Array, "B T D"], LayerCache | None]:
        cfg = self.config
        x = checkpoint_name(x, "input")
        own, cross = (None, None) if cache is None else (cache.own, cache.cross)
        if cfg.attention is not None:
            attention = inner(cfg.attention)
            attn = attention.build(name="attn")
            h = self._norm("attn_norm")(x)
            seen = Seen.alone(attn.keys(h, inputs.positions), inputs)
            if own is not None:
                own, seen = own.step(seen.kv, inputs, attention.chunk is not None)
            mask, beside = attention.structure & _self_mask(attention, inputs, seen), None
            if isinstance(cfg.cross, Merged) and memory is not None:
                beside = cross, _ = _remembered(attn, memory, cross, inputs)
            y = attn(h, seen.kv, mask, inputs.positions, inputs.bias, beside)
            x = self._add(x, y, "attn")

        if cfg.cross is not None and not isinstance(cfg.cross, Merged) and memory is not None:
            attend = inner(cfg.cross).build(name="cross")
            cross, mask = _remembered(attend, memory, cross, inputs)
            y = attend(self._norm("cross_norm")(x), cross, mask, inputs.positions)
            x = self._add(x, y, "cross")

        if cfg.ffn is not None and not (memory is None and isinstance(cfg.ffn, Seeing)):
            y = inner(cfg.ffn).build(name="ffn")(self._norm("ffn_norm")(x))
            if memory is not None and isinstance(cfg.ffn, Seeing):
                y = jnp.where(memory.seen(inputs.positions)[..., None], y, 0)
            x = self._add(x, y, "ffn")
        return x, None if cache is None else LayerCache(own, cross)

    def _norm(self, name: str) -> nn.Module:
        return self.config.norm.build(name=name)

    def _add(self, x: jax.Array, y: jax.Array, part: str) -> jax.Array:
        cfg = self.config
        gated = {"attn": cfg.attention, "cross": cfg.cross, "ffn": cfg.ffn}[part]
        if isinstance(gated, Gated):
            init = lettered(nn.initializers.constant(gated.start), "")
            y = y * jnp.tanh(self.param(GATES[part], init, (), jnp.float32)).astype(y.dtype)
        y = checkpoint_name(y, part)
        if cfg.post_norm:
            y = self._norm(f"{part}_post_norm")(y)
        if cfg.dropout and self.has_rng("dropout"):
            keep = jax.random.bernoulli(self.make_rng("dropout"), 1 - cfg.dropout, y.shape)
            y = jnp.where(keep, y / (1 - cfg.dropout), 0).astype(y.dtype)
        return x + y


def _self_mask(attention: Attention, inputs: Inputs, seen: Seen) -> Mask:
    """The data of the self-attention mask: padding and packing, or the slots of the cache."""
    placed = seen.positions if attention.structure.local else None
    q_positions, kv_positions = placed or (None, None)
    mask = Mask(q_positions=q_positions, kv_positions=kv_positions, kv_valid=seen.valid)
    if inputs.places is not None and not inputs.places.fresh:
        return mask
    packed = Mask(q_segments=inputs.segments, kv_segments=inputs.segments, parts=inputs.parts)
    return mask & packed & Mask(allow=inputs.allow)


def _remembered(
    attention: AttentionModule, memory: Memory, kept: KV | None, inputs: Inputs
) -> tuple[KV, Mask]:
    """Keys and values of the memory, those that were kept if it came earlier, and who sees them."""
    kv = kept if memory.x is None else _memory_keys(attention, memory)
    assert kv is not None
    allow = memory.allowed(inputs.positions)
    return kv, Mask(kv_valid=memory.valid, allow=allow, parts=memory.parts)


def _memory_keys(attention: AttentionModule, memory: Memory) -> KV:
    """The memory's keys and values, stream by stream.

    A matrix product over more rows may round its rows differently, so each stream has a product of
    its own: then a stream that is absent changes no bit of the others. The memory has no rotary
    positions of its own; position 0 turns nothing.
    """
    assert memory.x is not None
    streams = jnp.split(memory.x, list(itertools.accumulate(memory.parts))[:-1], axis=1)
    keys = [attention.keys(x, jnp.zeros((*x.shape[:2], 1), jnp.int32)) for x in streams]
    return keys[0] if len(keys) == 1 else jax.tree.map(lambda *a: jnp.concatenate(a, 1), *keys)
