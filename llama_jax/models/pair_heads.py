"""Heads that compare the two segments of a pair: next sentence, sentence order.

BERT's own, `PairHead`, reads the first token alone: that B has the words of A must reach that one
vector through the layers, which a small encoder with little text never learns. Here the two are
compared outright.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from llama_jax.checked import checked
from llama_jax.errors import UserError, positive
from llama_jax.layers.linear import Einsum
from llama_jax.limits import check_limits
from llama_jax.models.heads import PairHead
from llama_jax.models.tokens import Tokens

# Finite, so that a segment without a token stays finite too.
_NEVER = -1e30


@checked
class ComparedPair:
    """Logits from what two segments share: means, their difference and product, and matches.

    The means u, v are taken over the tokens of a segment, and (cls, u, v, |u - v|, u * v) is read,
    as in InferSent (Conneau et al. 2017, arXiv:1705.02364). A match is made of what ColBERT sums
    (Khattab and Zaharia 2020, arXiv:2004.12832): the cosine of a token to the one of the other
    segment that it is most like, in a space of its own. Each adds to a few sums with weights that
    the token itself decides, as shared rare words tell more than common ones.

    Matches are made of the word vectors, before any layer: behind two layers that have learned
    nothing the cosine of a word to itself is 0.93 at the median, and to the likest other one 0.94.
    A match is exp(sharpness (cosine - 1)), and the weights begin at 1: at first the sums count what
    stands in both segments. With the cosines themselves, of which the many tokens without a partner
    have some 0.3, and weights around 0, four times as many pairs taught less
    (experiments/shared_words.py).

    Attributes:
      width: numbers of a vector in the space where tokens are likened.
      sums: weighted sums of matches a segment; 0 compares the means alone.
      sharpness: how fast a match fades with the angle.
    """

    width: int = 64
    sums: int = 8
    sharpness: float = 8.0

    def __post_init__(self):
        positive(self, "width", "sharpness")
        check_limits(self)

    def build(self, name: str | None = None) -> nn.Module:
        """A module from (text, words_BTD, types_BT) to two logits a row."""
        return ComparedModule(self, name=name)


class ComparedModule(nn.Module):
    """See `ComparedPair`."""

    config: ComparedPair

    @nn.compact
    def __call__(
        self, text: Tokens, words_BTD: Float[Array, "B T D"], types_BT: Int[Array, "B T"] | None
    ) -> Float[Array, "B A"]:
        """Two logits a row, of a text behind its encoder and its word vectors before it."""
        if types_BT is None:
            raise UserError(
                "ComparedPair compares two segments, and the text has no `text_types` that tell "
                "them apart; take the task SentencePairs, or the head PairHead"
            )
        first_BT, second_BT = text.valid & (types_BT == 0), text.valid & (types_BT == 1)
        u_BD, v_BD = mean(text.x, first_BT), mean(text.x, second_BT)
        seen = [text.x[:, 0], u_BD, v_BD, jnp.abs(u_BD - v_BD), u_BD * v_BD]
        if self.config.sums:
            seen += self._matches(words_BTD, first_BT, second_BT)
        x_BA = jnp.concatenate([part.astype(text.x.dtype) for part in seen], axis=-1)
        h_BF = Einsum("BA,AF->BF", bias=True, F=text.x.shape[-1], name="pool")(x_BA)
        h_BF = jnp.tanh(h_BF).astype(jnp.float32)
        return Einsum("BF,FA->BA", bias=True, A=2, name="out")(h_BF)

    def _matches(
        self,
        x_BTD: Float[Array, "B T D"],
        first_BT: Bool[Array, "B T"],
        second_BT: Bool[Array, "B T"],
    ) -> list[jax.Array]:
        """The sums of each segment, [B, sums]; word vectors may be of any size."""
        x_BTD = x_BTD * jax.lax.rsqrt(jnp.mean(jnp.square(x_BTD), -1, keepdims=True) + 1e-6)
        z_BTA = Einsum("BTD,DA->BTA", A=self.config.width, name="like")(x_BTD)
        match_BT = jnp.exp(self.config.sharpness * (best(z_BTA, first_BT, second_BT) - 1))
        weight_BTA = Einsum("BTD,DA->BTA", A=self.config.sums, name="weigh")(x_BTD)
        match_BTA = (1 + weight_BTA.astype(jnp.float32)) * match_BT[..., None]
        return [total(match_BTA, there_BT) for there_BT in (first_BT, second_BT)]


def best(
    z_BTA: Float[Array, "B T A"], first_BT: Bool[Array, "B T"], second_BT: Bool[Array, "B T"]
) -> Float[Array, "B T"]:
    """Cosine of each token to the most alike of the other segment; -1 where there is none."""
    z_BTA = z_BTA.astype(jnp.float32)
    z_BTA *= jax.lax.rsqrt(jnp.sum(z_BTA * z_BTA, axis=-1, keepdims=True) + 1e-12)
    like_BTS = jnp.einsum("BTA,BSA->BTS", z_BTA, z_BTA)
    across_BTS = first_BT[:, :, None] & second_BT[:, None, :]
    across_BTS |= second_BT[:, :, None] & first_BT[:, None, :]
    found_BT = jnp.max(jnp.where(across_BTS, like_BTS, _NEVER), axis=-1)
    return jnp.where(jnp.any(across_BTS, axis=-1), found_BT, -1)


def mean(x_BTD: Float[Array, "B T D"], there_BT: Bool[Array, "B T"]) -> Float[Array, "B D"]:
    """Over the tokens that are there; zeros if none is."""
    count_B = jnp.maximum(jnp.sum(there_BT, axis=1, dtype=jnp.float32), 1)
    return _summed(x_BTD, there_BT) / count_B[:, None]


def total(x_BTD: Float[Array, "B T D"], there_BT: Bool[Array, "B T"]) -> Float[Array, "B D"]:
    """The sum over the tokens that are there, by the root of their number: of a size at any T."""
    count_B = jnp.maximum(jnp.sum(there_BT, axis=1, dtype=jnp.float32), 1)
    return _summed(x_BTD, there_BT) * jax.lax.rsqrt(count_B)[:, None]


def _summed(x_BTD: jax.Array, there_BT: jax.Array) -> jax.Array:
    return jnp.einsum("BTD,BT->BD", x_BTD.astype(jnp.float32), there_BT.astype(jnp.float32))


Pairing = PairHead | ComparedPair
