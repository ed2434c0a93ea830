"""Feed-forward layers: gated (Shazeer 2020, arXiv:2002.05202) and plain."""

from typing import Literal

import flax.linen as nn
import jax
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Float

from llama_jax.checked import checked
from llama_jax.errors import positive
from llama_jax.layers.linear import Einsum

Activation = Literal["silu", "gelu", "gelu_tanh", "relu"]

ACTIVATIONS = {
    "silu": jax.nn.silu,
    "gelu": lambda x: jax.nn.gelu(x, approximate=False),
    "gelu_tanh": lambda x: jax.nn.gelu(x, approximate=True),
    "relu": jax.nn.relu,
}


@checked
class SwiGLU:
    """down(silu(gate(x)) * up(x)), LLaMA's feed-forward; other activations give GeGLU and ReGLU.

    Attributes:
      hidden: the inner width, F.
      activation: silu, gelu (the exact one), gelu_tanh or relu.
      bias: whether the three maps have biases.
    """

    hidden: int
    activation: Activation = "silu"
    bias: bool = False

    def __post_init__(self):
        positive(self, "hidden")

    def build(self, name: str | None = None) -> nn.Module:
        """The module."""
        return SwiGLUModule(self, name=name)


class SwiGLUModule(nn.Module):
    """See `SwiGLU`."""

    config: SwiGLU

    @nn.compact
    def __call__(self, x_BTD: Float[Array, "B T D"]) -> Float[Array, "B T D"]:
        cfg = self.config
        gate_BTF = Einsum("BTD,DF->BTF", F=cfg.hidden, bias=cfg.bias, name="gate")(x_BTD)
        up_BTF = Einsum("BTD,DF->BTF", F=cfg.hidden, bias=cfg.bias, name="up")(x_BTD)
        hidden_BTF = ACTIVATIONS[cfg.activation](gate_BTF) * up_BTF
        hidden_BTF = checkpoint_name(hidden_BTF, "hidden")
        return Einsum("BTF,FD->BTD", D=x_BTD.shape[-1], bias=cfg.bias, name="down")(hidden_BTF)


@checked
class MLP:
    """down(act(up(x))), the feed-forward of BERT, ViT and the first Transformer.

    Attributes:
      hidden: the inner width, F.
      activation: silu, gelu (the exact one), gelu_tanh or relu.
      bias: whether both maps have biases.
    """

    hidden: int
    activation: Activation = "gelu"
    bias: bool = False

    def __post_init__(self):
        positive(self, "hidden")

    def build(self, name: str | None = None) -> nn.Module:
        """The module."""
        return MLPModule(self, name=name)


class MLPModule(nn.Module):
    """See `MLP`."""

    config: MLP

    @nn.compact
    def __call__(self, x_BTD: Float[Array, "B T D"]) -> Float[Array, "B T D"]:
        cfg = self.config
        hidden_BTF = Einsum("BTD,DF->BTF", F=cfg.hidden, bias=cfg.bias, name="up")(x_BTD)
        hidden_BTF = checkpoint_name(ACTIVATIONS[cfg.activation](hidden_BTF), "hidden")
        return Einsum("BTF,FD->BTD", D=x_BTD.shape[-1], bias=cfg.bias, name="down")(hidden_BTF)


FeedForward = SwiGLU | MLP
