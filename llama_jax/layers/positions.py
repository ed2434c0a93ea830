"""Positions that are added rather than rotated: learned tables and T5's relative bias."""

import math

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from llama_jax.checked import checked
from llama_jax.errors import UserError
from llama_jax.layers.linear import lettered
from llama_jax.limits import check_limits


@checked
class Learned:
    """One learned vector a coordinate, summed over the axes: (t,) for text, (t, y, x) for images.

    Attributes:
      lengths: how many coordinates each axis has.
    """

    lengths: tuple[int, ...]

    def build(self, name: str | None = None) -> nn.Module:
        """The module: positions [B,T,A] and a width give [B,T,D]."""
        return LearnedModule(self, name=name)


class LearnedModule(nn.Module):
    """See `Learned`. A coordinate outside its table gives NaN rather than a wrong vector."""

    config: Learned

    @nn.compact
    def __call__(self, positions_BTA: Int[Array, "B T A"], width: int) -> Float[Array, "B T D"]:
        total = 0.0
        for axis, length in enumerate(self.config.lengths):
            init = lettered(nn.initializers.normal(width**-0.5), "AD")
            table = self.param(f"axis_{axis}", init, (length, width), jnp.float32)
            total = total + jnp.take(table, positions_BTA[..., axis], axis=0, mode="fill")
        return jnp.asarray(total)


@checked
class RelativeBias:
    """A learned bias for each head and each bucket of distances, shared by all layers of a stack.

    Source: Raffel et al. 2020 (arXiv:1910.10683), section 2.1; transformers T5Attention.

    Attributes:
      heads: query heads N.
      buckets: half of them hold exact distances, the rest grow logarithmically.
      distance: from here on all distances share the last bucket.
      causal: buckets for the past only (decoder), else half of them for each direction.
    """

    heads: int
    buckets: int = 32
    distance: int = 128
    causal: bool = False

    def __post_init__(self):
        check_limits(self)
        parts = 2 if self.causal else 4
        if self.buckets < parts or self.distance <= self.buckets // parts:
            raise UserError(
                f"buckets={self.buckets}, distance={self.distance}: give {parts} buckets or more, "
                f"and a distance of more than a {'half' if self.causal else 'quarter'} of them"
            )

    def build(self, name: str | None = None) -> nn.Module:
        """The module: query and key positions give [N,T,S]."""
        return RelativeBiasModule(self, name=name)

    def bucket(self, ahead: Int[Array, "T S"]) -> Int[Array, "T S"]:
        """The bucket of each `key position - query position`."""
        buckets, offset = self.buckets, 0
        if self.causal:
            far = jnp.maximum(-ahead, 0)
        else:
            buckets //= 2
            offset = jnp.where(ahead > 0, buckets, 0)
            far = jnp.abs(ahead)
        exact = buckets // 2
        ratio = jnp.log(jnp.maximum(far, 1).astype(jnp.float32) / exact) / math.log(
            self.distance / exact
        )
        large = jnp.minimum(exact + (ratio * (buckets - exact)).astype(jnp.int32), buckets - 1)
        return offset + jnp.where(far < exact, far, large)


class RelativeBiasModule(nn.Module):
    """See `RelativeBias`."""

    config: RelativeBias

    @nn.compact
    def __call__(
        self, q_positions: Int[Array, " T"], kv_positions: Int[Array, " S"]
    ) -> Float[Array, "N T S"]:
        cfg = self.config
        init = lettered(nn.initializers.normal(np.sqrt(1 / cfg.heads)), "AN")
        table_AN = self.param("w", init, (cfg.buckets, cfg.heads), jnp.float32)
        buckets = cfg.bucket(kv_positions[None, :] - q_positions[:, None])
        return jnp.moveaxis(table_AN[buckets], -1, 0)
