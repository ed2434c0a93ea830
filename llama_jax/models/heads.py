"""Heads: small modules that turn vectors into logits or into points of a shared space.

They compute in the dtype of their input and give float32. A head's parameters exist only if an
objective called it: the scalars of `AlignHead` are modules of their own for that reason.
"""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from llama_jax.checked import checked
from llama_jax.errors import UserError, nearest, positive
from llama_jax.layers.linear import Einsum, lettered
from llama_jax.layers.mlp import ACTIVATIONS, Activation
from llama_jax.layers.norm import LayerNorm, Norm
from llama_jax.limits import check_limits
from llama_jax.models.logits import Logits

_TIED = "BAD,VD->BAV"


@checked
class MaskedHead:
    """BERT's masked-token head: dense, activation, norm, then the tied table and a bias.

    Devlin et al. 2018 (arXiv:1810.04805); `BertLMPredictionHead` in transformers.
    BERT's gelu is the exact one, ALBERT's the tanh form.

    Attributes:
      activation: silu, gelu (the exact one), gelu_tanh or relu.
      norm: before the table.
    """

    activation: Activation = "gelu"
    norm: Norm = LayerNorm(eps=1e-12)

    def build(self, name: str | None = None) -> nn.Module:
        """A module from (x_BAD, table_VD) to logits_BAV."""
        return MaskedModule(self, name=name)


class MaskedModule(nn.Module):
    """See `MaskedHead`."""

    config: MaskedHead

    def __call__(
        self, x_BAD: Float[Array, "B A D"], table_VD: Float[Array, "V D"]
    ) -> Float[Array, "B A V"]:
        return self.readout(x_BAD, table_VD).logits

    @nn.compact
    def readout(self, x_BAD: Float[Array, "B A D"], table_VD: Float[Array, "V D"]) -> Logits:
        """The logits, not formed yet."""
        h_BAF = Einsum("BAD,DF->BAF", bias=True, F=x_BAD.shape[-1], name="dense")(x_BAD)
        h_BAF = ACTIVATIONS[self.config.activation](h_BAF)
        h_BAF = self.config.norm.build("norm", letter="F")(h_BAF)
        zeros = lettered(nn.initializers.zeros, "V")
        bias = self.param("bias", zeros, table_VD.shape[:1], jnp.float32)
        return Logits(h_BAF, table_VD, _TIED, bias)


@checked
class TiedHead:
    """The plain form: the embedding table itself, no weight of its own."""

    def build(self, name: str | None = None) -> nn.Module:
        """A module from (x_BAD, table_VD) to logits_BAV."""
        return TiedModule(name=name)


class TiedModule(nn.Module):
    """See `TiedHead`."""

    def __call__(
        self, x_BAD: Float[Array, "B A D"], table_VD: Float[Array, "V D"]
    ) -> Float[Array, "B A V"]:
        return self.readout(x_BAD, table_VD).logits

    def readout(self, x_BAD: Float[Array, "B A D"], table_VD: Float[Array, "V D"]) -> Logits:
        """The logits, not formed yet."""
        return Logits(x_BAD, table_VD, _TIED)


@checked
class LabelHead:
    """Dense, tanh, then one logit a label: BERT's pooler and classifier on one vector a row.

    Attributes:
      labels: how many there are.
    """

    labels: int = 2

    def __post_init__(self):
        if self.labels < 2:
            raise UserError(f"labels={self.labels}: a classifier needs at least 2 labels")

    def build(self, name: str | None = None) -> nn.Module:
        """A module from x_BD to logits [B, labels]."""
        return LabelModule(self, name=name)


@checked
class PairHead(LabelHead):
    """Two logits about a pair: next sentence, sentence order, image-text match."""

    labels: int = 2


class LabelModule(nn.Module):
    """See `LabelHead`."""

    config: LabelHead

    @nn.compact
    def __call__(self, x_BD: Float[Array, "B D"]) -> Float[Array, "B A"]:
        h_BF = jnp.tanh(Einsum("BD,DF->BF", bias=True, F=x_BD.shape[-1], name="pool")(x_BD))
        return Einsum("BF,FA->BA", bias=True, A=self.config.labels, name="out")(
            h_BF.astype(jnp.float32)
        )


@checked
class AlignHead:
    """One bias-free projection a modality into a shared space of unit vectors, and its scale.

    Radford et al. 2021 (arXiv:2103.00020): scale = exp(tau) <= 100, tau = log(1 / 0.07) at first.
    Zhai et al. 2023 (arXiv:2303.15343, the sigmoid loss) add a bias, -10 at first, and start at
    temperature 0.1.

    Attributes:
      width: numbers of a vector in the shared space.
      modalities: what is projected.
      temperature: at first; it is learned.
      bias: what the sigmoid loss adds at first; it is learned.
      max_scale: the most that the scale may become.
    """

    width: int = 64
    modalities: tuple[str, ...] = ("text", "image", "video")
    temperature: float = 0.07
    bias: float = -10.0
    max_scale: float = 100.0

    def __post_init__(self):
        positive(self, "width")
        check_limits(self)

    def build(self, name: str | None = None) -> nn.Module:
        """A module with `__call__(modality, x_BD)`, `scale()` and `bias()`."""
        return AlignModule(self, name=name)


class AlignModule(nn.Module):
    """See `AlignHead`."""

    config: AlignHead

    def setup(self):
        cfg = self.config
        self.to = {name: Einsum("BD,DA->BA", A=cfg.width) for name in cfg.modalities}
        self.tau = _Scalar(math.log(1 / cfg.temperature))
        self.shift = _Scalar(cfg.bias)

    def __call__(self, modality: str, x_BD: Float[Array, "B D"]) -> Float[Array, "B A"]:
        """Projects vectors of one modality onto the unit sphere; a zero vector stays zero."""
        if modality not in self.to:
            known = self.config.modalities
            raise UserError(
                f"no alignment projection for {modality!r}; AlignHead(modalities={known})"
                + nearest(modality, known)
            )
        z_BA = self.to[modality](x_BD.astype(jnp.float32))
        # The small term keeps the gradient finite for the zero vector of a missing modality.
        return z_BA * jax.lax.rsqrt(jnp.sum(z_BA * z_BA, axis=-1, keepdims=True) + 1e-18)

    def scale(self) -> Float[Array, ""]:
        """The factor of the similarities, 1 / temperature, at most `max_scale`."""
        tau = self.tau()
        # Straight through: with the gradient of a plain minimum, tau could never come back.
        capped = jnp.minimum(tau, math.log(self.config.max_scale))
        return jnp.exp(tau + jax.lax.stop_gradient(capped - tau))

    def bias(self) -> Float[Array, ""]:
        """The offset of the sigmoid loss."""
        return self.shift()


class _Scalar(nn.Module):
    """One trainable number."""

    init: float

    @nn.compact
    def __call__(self) -> Float[Array, ""]:
        return self.param(
            "value", lettered(nn.initializers.constant(self.init), ""), (), jnp.float32
        )
