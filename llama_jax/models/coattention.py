"""Co-attention, the seed's cross-modal attention: every modality attends to the others.

    CrossModalAttn(Q_m, K_n, V_n) = softmax(Q_m K_n' / sqrt(d_k)) V_n        for each n != m

Source: the seed document, section 2.3; LXMERT (Tan and Bansal 2019, arXiv:1908.07490), figure 2.
"""

from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

from llama_jax.checked import checked
from llama_jax.errors import positive
from llama_jax.kernels.attention.mask import Mask
from llama_jax.layers.attention import Attention, AttentionModule
from llama_jax.layers.block import Block
from llama_jax.layers.inputs import Inputs
from llama_jax.layers.norm import Norm, RMSNorm
from llama_jax.models.tokens import Tokens

Streams = dict[str, Tokens]


@checked
class CoAttention:
    """Each modality looks at all others, then at itself, then passes a feed-forward.

    Every part is pre-normed and has a residual. With one modality there is nobody to look at and
    the first part adds nothing.

    Attributes:
      attention: the cross-modal attention (rope=None: positions of two modalities do not compare).
      block: self-attention and feed-forward, weights of its own for each modality.
      layers: how many times.
      combine: "joint" has one softmax over the keys of all other modalities; "sum" adds one softmax
        for each of them, the equation read literally. With two modalities they are equal.
      share: which cross-modal weights are shared: "all" has one set; "per_modality" one a modality,
        whose queries it uses to read and whose keys when it is read; "per_pair" one an ordered
        pair.
      norm: before the cross-modal attention.
    """

    attention: Attention
    block: Block
    layers: int = 2
    combine: Literal["joint", "sum"] = "joint"
    share: Literal["all", "per_modality", "per_pair"] = "per_modality"
    norm: Norm = RMSNorm()

    def __post_init__(self):
        positive(self, "layers")

    def build(self, name: str | None = None) -> "CoAttentionModule":
        """The module."""
        return CoAttentionModule(self, name=name)

    def reader(self, m: str, n: str) -> str:
        """The name of the weights with which m reads n: its query and output projections."""
        pair = m if self.combine == "joint" else f"{m}_{n}"
        return {"all": "all", "per_modality": m, "per_pair": pair}[self.share]

    def source(self, m: str, n: str) -> str:
        """The name of the weights that make the keys and values of n for m."""
        return {"all": "all", "per_modality": n, "per_pair": f"{m}_{n}"}[self.share]


class CoAttentionModule(nn.Module):
    """See `CoAttention`."""

    config: CoAttention

    @nn.compact
    def __call__(self, streams: Streams) -> Streams:
        for layer in range(self.config.layers):
            streams = CoAttentionLayer(self.config, name=f"layer_{layer}")(streams)
        return streams


class CoAttentionLayer(nn.Module):
    """One layer: all modalities look at each other at once, at their states before the layer."""

    config: CoAttention

    @nn.compact
    def __call__(self, streams: Streams) -> Streams:
        cfg = self.config
        normed = {m: cfg.norm.build(name=f"norm_{m}")(tokens.x) for m, tokens in streams.items()}
        weights: dict[str, AttentionModule] = {}

        def attention(name: str) -> AttentionModule:
            if name not in weights:
                weights[name] = cfg.attention.build(name=f"cross_{name}")
            return weights[name]

        def read(m: str, others: list[str]) -> jax.Array:
            """Attention of m over the keys of `others` under one softmax."""
            parts = [
                attention(cfg.source(m, n)).keys(normed[n], streams[n].positions) for n in others
            ]
            kv = jax.tree.map(lambda *a: jnp.concatenate(a, axis=1), *parts)
            valid = jnp.concatenate([streams[n].valid for n in others], axis=1)
            lengths = tuple(streams[n].x.shape[1] for n in others)
            mask = Mask(kv_valid=valid, parts=lengths)
            reader = attention(cfg.reader(m, others[0]))
            return reader(normed[m], kv, mask, streams[m].positions)

        fused = {}
        for m, tokens in streams.items():
            others = [n for n in streams if n != m]
            x = tokens.x
            for group in [others] if cfg.combine == "joint" else [[n] for n in others]:
                if group:
                    x = x + read(m, group)
            inputs = Inputs(positions=tokens.positions, valid=tokens.valid)
            x, _ = cfg.block.build(name=f"block_{m}")(x, None, inputs)
            fused[m] = tokens.with_x(x)
        return fused
