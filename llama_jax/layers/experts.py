"""Experts: a feed-forward of which each token goes through a few, chosen by a router.

    router(x) ─ top k ─ sigmoid ─┐
    x ──────────────────────── (x) ── the chosen experts ──(+)──
      └─────────────────────── the shared expert ───────────┘

Source: Llama 4 (`llama_models/llama4/moe.py`; transformers, `modeling_llama4.py`). The router
scales what an expert is given, and not what it gives; the shared one sees every token as it is.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from llama_jax.checked import checked
from llama_jax.errors import UserError, positive
from llama_jax.kernels.experts.api import experts
from llama_jax.layers.linear import Einsum, fan_in_normal, weight
from llama_jax.layers.mlp import ACTIVATIONS, Activation, SwiGLU

# The losses that it sows, for `objectives.Sown`.
BALANCE, ROUTER_Z = "balance", "router_z"


@checked
class Experts:
    """Gated feed-forwards, of which each token goes through `top_k`.

    Two losses are sown. "balance" is 1 if all experts are chosen alike, and E / k if always the
    same are (Fedus et al. 2021, arXiv:2101.03961, section 2.2). "router_z" is the mean square of
    the logarithm of the router's sum, which keeps its logits small (Zoph et al. 2022,
    arXiv:2202.08906, section 2.3). "load", the share of the choices that falls to each expert,
    lies among the intermediates.

    Attributes:
      hidden: the inner width of an expert, F.
      experts: how many there are, E.
      top_k: how many a token goes through.
      shared: a feed-forward for all tokens beside them, or None.
      activation: silu, gelu (the exact one), gelu_tanh or relu.
    """

    hidden: int
    experts: int
    top_k: int = 1
    shared: SwiGLU | None = None
    activation: Activation = "silu"

    def __post_init__(self):
        positive(self, "hidden", "experts", "top_k")
        if self.top_k > self.experts:
            raise UserError(f"top_k={self.top_k} of experts={self.experts}; give as many or fewer")

    def build(self, name: str | None = None) -> nn.Module:
        """The module."""
        return ExpertsModule(self, name=name)


class ExpertsModule(nn.Module):
    """See `Experts`."""

    config: Experts

    @nn.compact
    def __call__(self, x_BTD: Float[Array, "B T D"]) -> Float[Array, "B T D"]:
        cfg, D = self.config, x_BTD.shape[-1]
        # In bfloat16 two experts may look alike, and their choice is no matter of rounding.
        router = Einsum("BTD,DE->BTE", E=cfg.experts, name="router")
        logits_BTE = router(x_BTD.astype(jnp.float32))
        top_BTC, chosen_BTC = jax.lax.top_k(logits_BTE, cfg.top_k)
        self._sow(logits_BTE, chosen_BTC)
        sizes = {"E": cfg.experts, "D": D, "F": cfg.hidden}
        gate_EDF, up_EDF, down_EFD = (
            Weights(letters, tuple(sizes[letter] for letter in letters), name=name)(x_BTD.dtype)
            for name, letters in (("gate", "EDF"), ("up", "EDF"), ("down", "EFD"))
        )
        act = ACTIVATIONS[cfg.activation]
        share_BTC = jax.nn.sigmoid(top_BTC).astype(x_BTD.dtype)
        y_BTD = experts(x_BTD, chosen_BTC, share_BTC, gate_EDF, up_EDF, down_EFD, act)
        return y_BTD if cfg.shared is None else y_BTD + cfg.shared.build(name="shared")(x_BTD)

    def _sow(self, logits_BTE: jax.Array, chosen_BTC: jax.Array) -> None:
        """The losses, and the load of each expert."""
        E, rows = self.config.experts, (0, 1)
        chosen_BTE = jnp.sum(jax.nn.one_hot(chosen_BTC, E), axis=2)
        load_E = jnp.mean(chosen_BTE, axis=rows) / self.config.top_k
        likely_E = jnp.mean(jax.nn.softmax(logits_BTE), axis=rows)
        self.sow("losses", BALANCE, E * jnp.sum(load_E * likely_E))
        self.sow("losses", ROUTER_Z, jnp.mean(jax.nn.logsumexp(logits_BTE, axis=-1) ** 2))
        self.sow("intermediates", "load", load_E)


class Weights(nn.Module):
    """One matrix of every expert, drawn as a matrix by itself would be."""

    letters: str
    shape: tuple[int, ...]

    @nn.compact
    def __call__(self, dtype: jnp.dtype) -> jax.Array:
        _, inner, _ = self.shape
        w = weight(self, "w", fan_in_normal(inner), self.letters, self.shape)
        return w.astype(dtype)
