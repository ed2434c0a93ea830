"""`Sizes`: what every notation of a language model says, in words of none of them.

A reader of a notation fills it in, `build` makes the model of it; `sizes` goes back, for a writer.
What differs from layer to layer stands there layer by layer; the pattern of blocks, as short as it
can be, is made of that.
"""

import dataclasses
from dataclasses import dataclass
from typing import Any

from llama_jax.errors import UserError
from llama_jax.layers.attention import Attention, TemperatureTuning
from llama_jax.layers.block import Block
from llama_jax.layers.experts import Experts
from llama_jax.layers.mlp import SwiGLU
from llama_jax.layers.norm import BareNorm, RMSNorm
from llama_jax.layers.rope import Rope
from llama_jax.layers.stack import Stack
from llama_jax.models.decoder import Decoder
from llama_jax.trees import difference

FeedForward = SwiGLU | Experts


@dataclass(frozen=True)
class Sizes:
    """The numbers of a causal decoder with RMSNorm, grouped keys and SwiGLU or experts.

    Attributes:
      vocab: V.
      width: D.
      layers: L.
      heads: N, of queries.
      kv_heads: K, of keys and values.
      head_dim: H.
      hidden: F, of the layers without experts; of all experts if there is no such layer.
      eps: what all norms add below the root.
      rope: the rotary embedding, or None if no layer has one.
      context: positions that the model was trained for, or None.
      tied: whether the embedding is the output layer too.
      qk_norm: whether each head of q and k is normalised.
      bias: whether q, k and v have biases.
      out_bias: whether the output of attention has one.
      ffn_bias: whether the feed-forward has biases.
      windows: each layer's window of attention, or None; () if no layer has one.
      rotated: whether each layer has the rotary embedding; () if all have it.
      chunks: each layer's chunk of attention, or None; () if no layer has one.
      bare_norm: whether q and k of layers with the rotary embedding have a norm without a scale.
      tuning: how queries of layers without the rotary embedding grow, or None.
      experts: each layer's experts, or None where it has SwiGLU; () if no layer has any.
    """

    vocab: int
    width: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    hidden: int
    eps: float
    rope: Rope | None
    context: int | None
    tied: bool
    qk_norm: bool = False
    bias: bool = False
    out_bias: bool = False
    ffn_bias: bool = False
    windows: tuple[int | None, ...] = ()
    rotated: tuple[bool, ...] = ()
    chunks: tuple[int | None, ...] = ()
    bare_norm: bool = False
    tuning: TemperatureTuning | None = None
    experts: tuple[Experts | None, ...] = ()

    @property
    def routed(self) -> Experts | None:
        """The experts of the layers that have them; they are the same in all."""
        return next(filter(None, self.experts), None)

    @property
    def letters(self) -> dict[str, int]:
        """The sizes of the letters D, N, K, H, F and V."""
        named = (self.width, self.heads, self.kv_heads, self.head_dim, self.hidden, self.vocab)
        return dict(zip("DNKHFV", named, strict=True))


def build(given: Sizes) -> Decoder:
    """The model of these sizes.

    Raises:
      ValueError: key heads that do not divide the heads.
    """
    norm = RMSNorm(given.eps)
    windows = given.windows or (None,) * given.layers
    rotated = given.rotated or (True,) * given.layers
    chunks = given.chunks or (None,) * given.layers
    experts = given.experts or (None,) * given.layers

    def block(window: int | None, turned: bool, chunk: int | None, routed: Experts | None) -> Block:
        bare = BareNorm(given.eps) if given.bare_norm and turned else None
        attention = Attention(
            given.heads,
            given.kv_heads,
            given.head_dim,
            rope=given.rope if turned else None,
            causal=True,
            window=window,
            chunk=chunk,
            qk_norm=norm if given.qk_norm else bare,
            tuning=None if turned else given.tuning,
            bias=given.bias,
            out_bias=given.out_bias,
        )
        return Block(attention, routed or SwiGLU(given.hidden, bias=given.ffn_bias), norm=norm)

    kinds = list(zip(windows, rotated, chunks, experts, strict=True))
    period = shortest(kinds)
    return Decoder(
        vocab=given.vocab,
        width=given.width,
        stack=Stack(tuple(block(*kind) for kind in kinds[:period]), given.layers // period),
        tied=given.tied,
        norm=norm,
        context=given.context,
    )


def shortest(kinds: list[Any]) -> int:
    """The length of the shortest beginning of a list of which the list is repeats."""
    lengths = (n for n in range(1, len(kinds) + 1) if len(kinds) % n == 0)
    return next(n for n in lengths if kinds == kinds[:n] * (len(kinds) // n))


def check_alone(model: Any) -> None:
    """Raises UserError if a model is more than a language model."""
    if not isinstance(model, Decoder):
        raise UserError(
            f"the model is a {type(model).__name__}, of more parts than a language model; this "
            "reads language models alone"
        )


def layers(model: Decoder) -> list[tuple[Attention, FeedForward]]:
    """The attention and the feed-forward of every layer, from the first to the last.

    Raises:
      UserError: a block that is not made of these, for which formats have no names.
    """
    check_alone(model)
    period = []
    for i, block in enumerate(model.stack.pattern):
        attention, ffn = getattr(block, "attention", None), getattr(block, "ffn", None)
        if not isinstance(attention, Attention) or not isinstance(ffn, FeedForward):
            raise UserError(
                f"block {i} of the model's pattern is not made of attention and SwiGLU, or "
                "experts; other formats have no names for its weights"
            )
        period.append((attention, ffn))
    return period * model.stack.repeats


def sizes(model: Decoder) -> Sizes:
    """The sizes of a model; what else it has is not told.

    Raises:
      UserError: its blocks are of another kind, or of several sizes.
    """
    every = layers(model)
    heads = {(a.heads, a.kv_heads, a.head_dim) for a, _ in every}
    dense = {ffn.hidden for _, ffn in every if isinstance(ffn, SwiGLU)}
    experts = tuple(ffn if isinstance(ffn, Experts) else None for _, ffn in every)
    kinds = {ffn for ffn in experts if ffn is not None}
    if len(heads) > 1 or len(dense) > 1 or len(kinds) > 1:
        raise UserError(
            f"the layers of the model have several sizes, (heads, key heads, head) {heads} and "
            f"feed-forward {dense} or experts {kinds}; other formats have one for all"
        )
    first, ffn = every[0]
    windows = tuple(a.window for a, _ in every)
    rotated = tuple(a.rope is not None for a, _ in every)
    chunks = tuple(a.chunk for a, _ in every)
    return Sizes(
        vocab=model.vocab,
        width=model.width,
        layers=len(every),
        heads=first.heads,
        kv_heads=first.kv_heads,
        head_dim=first.head_dim,
        hidden=dense.pop() if dense else ffn.hidden,
        eps=getattr(model.norm, "eps", 0.0),
        rope=next((a.rope for a, _ in every if a.rope is not None), None),
        context=model.context,
        tied=model.tied,
        qk_norm=scaled(first),
        bias=first.bias,
        out_bias=first.out_bias,
        ffn_bias=any(ffn.bias for _, ffn in every if isinstance(ffn, SwiGLU)),
        windows=windows if any(windows) else (),
        rotated=() if all(rotated) else rotated,
        chunks=chunks if any(chunks) else (),
        bare_norm=any(isinstance(a.qk_norm, BareNorm) for a, _ in every),
        tuning=next((a.tuning for a, _ in every if a.tuning is not None), None),
        experts=experts if any(experts) else (),
    )


def scaled(attention: Attention) -> bool:
    """Whether its norms of q and k have weights."""
    return attention.qk_norm is not None and not isinstance(attention.qk_norm, BareNorm)


def unlike(model: Decoder, other: Decoder) -> str | None:
    """What a model has that another one has not, as "model.tied is True", or None.

    How weights are stacked and what training keeps of activations makes no difference.
    """
    pattern, stack = model.stack.pattern, other.stack
    theirs = [*stack.pattern] * stack.repeats
    for i, (a, b) in enumerate(zip([*pattern] * model.stack.repeats, theirs, strict=True)):
        if what := difference(a, b, f"model.stack.pattern.{i % len(pattern)}"):
            return what
    mine = dataclasses.replace(stack, bias=model.stack.bias)
    return difference(dataclasses.replace(model, stack=mine), other)
