"""Divided space-time attention for video: a block that looks along time, then within frames."""

import flax.linen as nn
from einops import rearrange
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Float

from llama_jax.checked import checked
from llama_jax.kernels.attention.mask import Mask
from llama_jax.layers.attention import Attention
from llama_jax.layers.cache import LayerCache
from llama_jax.layers.inputs import Inputs, Memory
from llama_jax.layers.mlp import FeedForward
from llama_jax.layers.norm import Norm, RMSNorm


@checked
class DividedBlock:
    """Video: attention over time at each patch, over each frame's patches, then feed-forward.

    Source: TimeSformer (Bertasius et al. 2021, arXiv:2102.05095), section 3, "divided space-time".

    Attributes:
      temporal: attention over time.
      spatial: attention within a frame.
      ffn: the feed-forward.
      norm: before each part.
    """

    temporal: Attention
    spatial: Attention
    ffn: FeedForward
    norm: Norm = RMSNorm()

    def build(self, name: str | None = None) -> "DividedBlockModule":
        """The module."""
        return DividedBlockModule(self, name=name)


class DividedBlockModule(nn.Module):
    """See `DividedBlock`."""

    config: DividedBlock

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "B T D"],
        cache: LayerCache | None,
        inputs: Inputs,
        memory: Memory | None = None,
    ) -> tuple[Float[Array, "B T D"], None]:
        cfg, frames = self.config, inputs.frames
        x = checkpoint_name(x, "input")
        over_time, back = "B (T P) ... -> (B P) T ...", "(B P) T D -> B (T P) D"
        over_space, back_space = "B (T P) ... -> (B T) P ...", "(B T) P D -> B (T P) D"
        for name, attention, out, home in (
            ("temporal", cfg.temporal, over_time, back),
            ("spatial", cfg.spatial, over_space, back_space),
        ):
            h, positions, valid = (
                rearrange(a, out, T=frames)
                for a in (cfg.norm.build(name=f"{name}_norm")(x), inputs.positions, inputs.valid)
            )
            attn = attention.build(name=name)
            y = attn(
                h, attn.keys(h, positions), attention.structure & Mask(kv_valid=valid), positions
            )
            x = x + rearrange(y, home, B=x.shape[0], T=frames)
        return x + cfg.ffn.build(name="ffn")(cfg.norm.build(name="ffn_norm")(x)), None
