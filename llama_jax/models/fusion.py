"""Fusion: streams of several modalities learn of each other. One contract for every variant:

    fuse({"text": Tokens, "image": Tokens, ...}) -> the same keys, fused

A modality that a batch lacks is an absent key; one that an example lacks has no valid token. Both
give the same result, because a query without a valid key receives zeros. A new variant is one class
here and one line in `Fusion`. The default, co-attention, has a file of its own.
"""

import flax.linen as nn
import jax.numpy as jnp

from llama_jax.checked import checked
from llama_jax.errors import positive
from llama_jax.layers.inputs import Inputs, Memory
from llama_jax.layers.linear import lettered
from llama_jax.layers.stack import Stack
from llama_jax.models.coattention import CoAttention, Streams
from llama_jax.models.tokens import Tokens, concatenate, text_positions


@checked
class Concat:
    """All tokens in one sequence through shared blocks, with a vector for each modality.

    Source: LLaVA (Liu et al. 2023, arXiv:2304.08485), Llama 4's early fusion.

    Attributes:
      stack: blocks with rope=None or learned positions: tokens of two modalities share no
        coordinates.
    """

    stack: Stack

    def build(self, name: str | None = None) -> nn.Module:
        """The module."""
        return ConcatModule(self, name=name)


class ConcatModule(nn.Module):
    """See `Concat`."""

    config: Concat

    @nn.compact
    def __call__(self, streams: Streams) -> Streams:
        marked = []
        for m, tokens in streams.items():
            init = lettered(nn.initializers.normal(tokens.x.shape[-1] ** -0.5), "D")
            kind = self.param(f"kind_{m}", init, tokens.x.shape[-1:], jnp.float32)
            marked.append(tokens.with_x(tokens.x + kind.astype(tokens.x.dtype)))
        joined = concatenate(marked)
        x = self.config.stack.build(name="stack")(joined.x, joined.inputs).x
        fused, start = {}, 0
        for m, tokens in streams.items():
            length = tokens.x.shape[1]
            fused[m] = tokens.with_x(x[:, start : start + length])
            start += length
        return fused


@checked
class Reading:
    """One modality reads the others through its blocks' cross-attention; they stay as they are.

    The blocks' `cross` says how: `Attention` (ALBEF's and BLIP's multimodal encoder), `Gated`
    (Flamingo, Llama 3.2-Vision), `Merged` (one softmax over itself and the others, T5Gemma 2).

    Attributes:
      stack: blocks with cross-attention.
      reader: the modality that reads.
    """

    stack: Stack
    reader: str = "text"

    def build(self, name: str | None = None) -> nn.Module:
        """The module."""
        return ReadingModule(self, name=name)


class ReadingModule(nn.Module):
    """See `Reading`."""

    config: Reading

    @nn.compact
    def __call__(self, streams: Streams) -> Streams:
        cfg = self.config
        if cfg.reader not in streams:
            return streams
        tokens = streams[cfg.reader]
        others = [other for m, other in streams.items() if m != cfg.reader]
        memory = concatenate(others).memory if others else None
        x = cfg.stack.build(name="stack")(tokens.x, tokens.inputs, memory).x
        return {**streams, cfg.reader: tokens.with_x(x)}


@checked
class Perceiver:
    """Resamples every other modality to a few learned latents, then fuses with `inner`.

    Source: Perceiver (Jaegle et al. 2021, arXiv:2103.03206); Flamingo's resampler: keys are
    [latents; media] under one softmax.

    Attributes:
      latents: tokens that a modality keeps.
      stack: blocks with `cross=Merged()` over the latents.
      inner: the fusion of the resampled streams.
      keep: the modality that is not resampled.
    """

    latents: int
    stack: Stack
    inner: "CoAttention | Concat | Reading | Late"
    keep: str = "text"

    def __post_init__(self):
        positive(self, "latents")

    def build(self, name: str | None = None) -> nn.Module:
        """The module."""
        return PerceiverModule(self, name=name)


class PerceiverModule(nn.Module):
    """See `Perceiver`."""

    config: Perceiver

    @nn.compact
    def __call__(self, streams: Streams) -> Streams:
        resampled = {
            m: tokens if m == self.config.keep else self._resample(m, tokens)
            for m, tokens in streams.items()
        }
        return self.config.inner.build(name="inner")(resampled)

    def _resample(self, m: str, tokens: Tokens) -> Tokens:
        cfg = self.config
        B, _, D = tokens.x.shape
        init = lettered(nn.initializers.normal(D**-0.5), "AD")
        latents = self.param(f"latents_{m}", init, (cfg.latents, D), jnp.float32).astype(
            tokens.x.dtype
        )
        # Latents of a medium that is not there are not there either.
        valid = jnp.broadcast_to(jnp.any(tokens.valid, axis=1, keepdims=True), (B, cfg.latents))
        positions = text_positions(B, cfg.latents)
        start = jnp.broadcast_to(latents, (B, cfg.latents, D))
        stack = cfg.stack.build(name=f"resample_{m}")
        x = stack(start, Inputs(positions, valid), Memory(tokens.x, tokens.valid)).x
        return Tokens(x, valid, positions)


@checked
class Late:
    """No fusion layer: streams meet only in heads or in a decoder (CLIP, SigLIP)."""

    def build(self, name: str | None = None) -> nn.Module:
        """The module."""
        return LateModule(name=name)


class LateModule(nn.Module):
    """See `Late`."""

    def __call__(self, streams: Streams) -> Streams:
        return streams


Fusion = CoAttention | Concat | Reading | Perceiver | Late
