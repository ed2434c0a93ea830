"""Projections around the one attention call; self- and cross-attention alike.

Grouped heads: N query heads share K key/value heads (Ainslie et al. 2023, arXiv:2305.13245).
"""

import math

import flax.linen as nn
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Float, Int

from llama_jax.checked import checked
from llama_jax.errors import UserError, positive
from llama_jax.kernels.attention.api import attention, attention_with_lse
from llama_jax.kernels.attention.flash import merge
from llama_jax.kernels.attention.mask import Mask
from llama_jax.layers.linear import Einsum
from llama_jax.layers.norm import QKNorm
from llama_jax.layers.rope import Rope
from llama_jax.layers.slots import KV, Contiguous, Kept, Ring
from llama_jax.limits import check_limits


@checked
class TemperatureTuning:
    """Queries that grow with their position, so that a long context does not flatten attention.

    Source: Nakanishi 2025 (arXiv:2501.19399), as Llama 4 has it (`llama_models/llama4/model.py`):
    times 1 + growth log(1 + floor((position + 1) / floor)), so nothing changes below `floor`.

    Attributes:
      floor: positions of a step.
      growth: how far each step of the logarithm goes.
    """

    floor: float = 8192.0
    growth: float = 0.1

    def __post_init__(self):
        positive(self, "floor")
        if not (math.isfinite(self.growth) and self.growth > 0):
            raise UserError(f"growth={self.growth}: give more than 0")

    def scaled(
        self, q_BTNH: Float[Array, "B T N H"], positions_BTA: Int[Array, "B T A"]
    ) -> Float[Array, "B T N H"]:
        """The queries, by their positions on the first axis."""
        steps_BT = jnp.floor((positions_BTA[..., 0].astype(jnp.float32) + 1) / self.floor)
        factor_BT = jnp.log1p(steps_BT) * self.growth + 1
        return (q_BTNH * factor_BT[:, :, None, None]).astype(q_BTNH.dtype)


@checked
class Attention:
    """Multi-head attention with grouped keys.

    Attributes:
      heads: query heads N.
      kv_heads: key/value heads K; divides N.
      head_dim: width of a head, H.
      rope: rotary embedding of queries and keys, or None.
      causal: queries see keys up to their own position.
      window: only keys nearer than this many positions.
      chunk: only keys of the query's own chunk of this length.
      qk_norm: normalisation of each head of q and k before the rotation, or None.
      tuning: how queries grow with their position, or None.
      scale: factor of the scores; 1/sqrt(H) by default, 1.0 for T5.
      bias: whether q, k, v have biases.
      out_bias: whether the output has one.
    """

    heads: int
    kv_heads: int
    head_dim: int
    rope: Rope | None = Rope()
    causal: bool = False
    window: int | None = None
    chunk: int | None = None
    qk_norm: QKNorm | None = None
    tuning: TemperatureTuning | None = None
    scale: float | None = None
    bias: bool = False
    out_bias: bool = False

    def __post_init__(self):
        positive(self, "heads", "kv_heads", "head_dim", "window", "chunk")
        check_limits(self)
        if self.rope is not None:
            self.rope.pairs(self.head_dim)
        if self.heads % self.kv_heads:
            raise UserError(f"heads={self.heads} is not a multiple of kv_heads={self.kv_heads}")

    @property
    def structure(self) -> Mask:
        """The static part of this layer's mask."""
        return Mask(causal=self.causal, window=self.window, chunk=self.chunk)

    @property
    def reach(self) -> int | None:
        """Positions that a query may see back, itself among them; None for all."""
        near = [size for size in (self.window, self.chunk) if size is not None]
        return min(near) if near and self.causal else None

    def cache(self, batch: int, slots: int, dtype=jnp.float32, whole: bool = False) -> Kept:
        """What it keeps of `slots` tokens a row: no more than its queries reach, unless `whole`."""
        of = self.kv_heads, self.head_dim
        if self.reach is None or self.reach >= slots or whole:
            return Contiguous.empty(batch, of[0], slots, of[1], dtype)
        return Ring.empty(batch, of[0], self.reach, of[1], dtype)

    def build(self, name: str | None = None) -> "AttentionModule":
        """The module."""
        return AttentionModule(self, name=name)


class AttentionModule(nn.Module):
    """See `Attention`. Call `keys` on what is attended to, then the module on what attends."""

    config: Attention

    def setup(self):
        cfg = self.config
        self.q = Einsum("BTD,DNH->BTNH", N=cfg.heads, H=cfg.head_dim, bias=cfg.bias)
        self.k = Einsum("BSD,DKH->BSKH", K=cfg.kv_heads, H=cfg.head_dim, bias=cfg.bias)
        self.v = Einsum("BSD,DKH->BSKH", K=cfg.kv_heads, H=cfg.head_dim, bias=cfg.bias)
        if cfg.qk_norm is not None:
            self.q_norm = cfg.qk_norm.build(letter="H")
            self.k_norm = cfg.qk_norm.build(letter="H")

    def keys(self, x_BSD: Float[Array, "B S D"], positions_BSA: Int[Array, "B S A"]) -> KV:
        """Keys and values of a sequence, rotated: what a cache holds."""
        k_BSKH = self.k(x_BSD)
        if self.config.qk_norm is not None:
            k_BSKH = self.k_norm(k_BSKH)
        if self.config.rope is not None:
            k_BSKH = self.config.rope.turn(k_BSKH, positions_BSA)
        return KV(checkpoint_name(k_BSKH, "k"), checkpoint_name(self.v(x_BSD), "v"))

    @nn.compact
    def __call__(
        self,
        x_BTD: Float[Array, "B T D"],
        kv: KV,
        mask: Mask,
        positions_BTA: Int[Array, "B T A"],
        bias_NTS: Float[Array, "N T S"] | None = None,
        beside: tuple[KV, Mask] | None = None,
    ) -> Float[Array, "B T D"]:
        """What the queries of x gather of the keys, and of those `beside` in the same softmax."""
        cfg = self.config
        q_BTNH = self.q(x_BTD)
        if cfg.qk_norm is not None:
            q_BTNH = self.q_norm(q_BTNH)
        if cfg.rope is not None:
            q_BTNH = cfg.rope.turn(q_BTNH, positions_BTA)
        if cfg.tuning is not None:
            q_BTNH = cfg.tuning.scaled(q_BTNH, positions_BTA)
        q_BTNH = checkpoint_name(q_BTNH, "q")
        if beside is None:
            out_BTNH = attention(q_BTNH, kv.k, kv.v, mask, bias=bias_NTS, scale=cfg.scale)
        else:
            other, seen = beside
            out_BTNH, _ = merge(
                *attention_with_lse(q_BTNH, kv.k, kv.v, mask, bias=bias_NTS, scale=cfg.scale),
                *attention_with_lse(q_BTNH, other.k, other.v, seen, scale=cfg.scale),
            )
            out_BTNH = out_BTNH.astype(q_BTNH.dtype)
        D = x_BTD.shape[-1]
        return Einsum("BTNH,NHD->BTD", D=D, bias=cfg.out_bias, name="o")(out_BTNH)
