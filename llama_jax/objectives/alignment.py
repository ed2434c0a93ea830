"""Image-text alignment: contrastive losses over the global batch, and matching with hard negatives.

The formulas are written on [B,A] arrays that are split over devices by rows: under plain `jit` XLA
gathers the other side, so the negatives are those of the whole batch on any number of devices.
"""

import functools
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from llama_jax.axes import shard
from llama_jax.checked import checked
from llama_jax.errors import UserError
from llama_jax.limits import check_limits
from llama_jax.models.tokens import Tokens, pool
from llama_jax.objectives.base import Acts, Loss, Objective, Sum, View
from llama_jax.objectives.masked import label_loss

# Finite, so that a row without any candidate stays finite too (its weight is 0).
_NEVER = -1e30


@checked
class _Pairs(Objective):
    """Reads pairs of two modalities.

    A text is right for a picture if its `class` is among the picture's `classes` (if the stream has
    only `class`: if their classes are equal), whichever rows they came in.

    Attributes:
      pair: the two modalities; ("text", "video") works as well.
    """

    pair: tuple[str, str] = ("text", "image")

    contrastive: ClassVar[bool] = True

    @property
    def needs(self) -> tuple[str, ...]:
        """Both modalities and the identity of each row."""
        return (*self.pair, "class")

    @property
    def compares(self) -> dict[str, bool]:
        """A vector of each."""
        return dict.fromkeys(self.pair, False)


@checked
class ITC(_Pairs):
    """Contrastive loss by softmax, both ways (Radford et al. 2021, arXiv:2103.00020).

    Rows of one class share the target evenly, for captions repeat (multi-positive).
    """

    evaluation: ClassVar[str] = "retrieval"

    def __call__(self, acts: Acts) -> Loss:
        """Sum over rows; metrics: recall at 1 within the batch, both ways."""
        za_BA, zb_BA, same_BB, weights_B = _embed(acts[self.on], self.pair)
        return itc_loss(za_BA, zb_BA, acts.model.align_scale(), same_BB, weights_B)


@checked
class SigmoidITC(_Pairs):
    """Contrastive loss by sigmoid (Zhai et al. 2023, arXiv:2303.15343): each pair yes or no."""

    evaluation: ClassVar[str] = "retrieval"

    def __call__(self, acts: Acts) -> Loss:
        """Sum over rows of the sum over columns; metrics as for ITC."""
        za_BA, zb_BA, same_BB, weights_B = _embed(acts[self.on], self.pair)
        scale, bias = acts.model.align_scale(), acts.model.align_bias()
        return sigmoid_loss(za_BA, zb_BA, scale, bias, same_BB, weights_B)


@checked
class ITM(_Pairs):
    """Do image and text belong together? With negatives that the contrastive space finds hard.

    ALBEF (Li et al. 2021, arXiv:2107.07651, section 3.2): for each image one text and for each text
    one image are drawn from the batch with probability softmax(similarity), never one of the same
    class; a fused pass over 3B pairs; labels 1 = match, 0 = not.

    Attributes:
      rows: only the first so many rows are anchors, to bound the cost; their negatives may come
        from the whole batch. None takes all.
      group: negatives come only from the same group of so many consecutive rows; set it to the rows
        of one device for local negatives (no communication of tokens). None takes the whole batch.
    """

    rows: int | None = None
    group: int | None = None

    def __post_init__(self):
        check_limits(self, "rows", "group")

    evaluation: ClassVar[str] = "matching"

    @property
    def compares(self) -> dict[str, bool]:
        """The tokens of each: any row may be drawn as a negative."""
        return dict.fromkeys(self.pair, True)

    def __call__(self, acts: Acts) -> Loss:
        """Sum over pairs; metrics: `accuracy`, and of it `positive` and `negative` pairs alone."""
        view = acts[self.on]
        za_BA, zb_BA, same_BB, weights_B = _embed(view, self.pair)
        pairs = self.choose(
            acts, jax.lax.stop_gradient(za_BA), jax.lax.stop_gradient(zb_BA), same_BB, weights_B
        )
        return acts.summed(functools.partial(self._matched, view), *pairs)

    def _matched(self, view: View, model: Any, a_R, b_R, label_R, weights_R) -> Loss:
        """The loss of these pairs of rows."""
        chosen = {
            name: _take(getattr(view, name), index_R, view.rows)
            for name, index_R in zip(self.pair, (a_R, b_R), strict=True)
        }
        fused = model.fuse(chosen)[self.pair[0]]
        x_RD = fused.x[:, 0] if self.pair[0] == "text" else pool(fused)
        logits_RA = model.match(x_RD)
        loss = label_loss(logits_RA, label_R, weights_R)
        right_R = (jnp.argmax(logits_RA, axis=-1) == label_R) * weights_R
        positive, negative = weights_R * label_R, weights_R * (1 - label_R)
        loss.metrics["positive"] = (jnp.sum(right_R * label_R), jnp.sum(positive))
        loss.metrics["negative"] = (jnp.sum(right_R * (1 - label_R)), jnp.sum(negative))
        return loss

    def choose(self, acts: Acts, za_BA, zb_BA, same_BB, weights_B):
        """Row numbers of both sides, labels and weights of the 3R pairs: R of each kind."""
        anchors = _anchors(self.rows, za_BA.shape[0])
        key_a, key_b = jax.random.split(acts.key)
        scale = jax.lax.stop_gradient(acts.model.align_scale())
        sims = [scale * _dot(za_BA, zb_BA), scale * _dot(zb_BA, za_BA)]
        own_R = jnp.arange(anchors)
        b_R, found_b_R = hard_negatives(key_b, sims[0][:anchors], same_BB, weights_B, self.group)
        a_R, found_a_R = hard_negatives(key_a, sims[1][:anchors], same_BB.T, weights_B, self.group)
        weights_R = weights_B[:anchors]
        return (
            jnp.concatenate([own_R, own_R, a_R]),
            jnp.concatenate([own_R, b_R, own_R]),
            jnp.concatenate([jnp.ones(anchors, jnp.int32), jnp.zeros(2 * anchors, jnp.int32)]),
            jnp.concatenate([weights_R, weights_R * found_b_R, weights_R * found_a_R]),
        )


@checked
class RollITM(ITM):
    """ITM whose negatives are the next row's: 2B pairs, no similarities. The cheap ablation."""

    def choose(self, acts: Acts, za_BA, zb_BA, same_BB, weights_B):
        """Each row with itself and with the row after it."""
        anchors = _anchors(self.rows, za_BA.shape[0])
        own_R = jnp.arange(anchors)
        next_R = (own_R + 1) % za_BA.shape[0]
        weights_R = weights_B[:anchors]
        wrong_R = weights_R * weights_B[next_R] * ~same_BB[own_R, next_R]
        return (
            jnp.concatenate([own_R, own_R]),
            jnp.concatenate([own_R, next_R]),
            jnp.concatenate([jnp.ones(anchors, jnp.int32), jnp.zeros(anchors, jnp.int32)]),
            jnp.concatenate([weights_R, wrong_R]),
        )


def itc_loss(
    za_BA: Float[Array, "B A"],
    zb_BA: Float[Array, "B A"],
    scale: Float[Array, ""] | float,
    same_BB: Bool[Array, "B B"],
    weights_B: Float[Array, " B"] | None = None,
) -> Loss:
    """Half the cross-entropy of softmax(scale za zb^T) with same / sum(same), plus the other way.

    Equals `CLIPModel(return_loss=True)` where no two rows are the same.

    Args:
      za_BA: unit vectors of one modality.
      zb_BA: unit vectors of the other, row by row the partner.
      scale: inverse temperature.
      same_BB: whether a row's first modality is right for a column's second; the diagonal is True.
      weights_B: a row of weight 0 is neither anchor nor candidate.
    """
    weights_B = jnp.ones(za_BA.shape[0], jnp.float32) if weights_B is None else weights_B
    # Two products and not one with its transpose: a split [B,B] array would have to be exchanged.
    ab, ab_right = _softmax_way(scale * _dot(za_BA, zb_BA), same_BB, weights_B)
    ba, ba_right = _softmax_way(scale * _dot(zb_BA, za_BA), same_BB.T, weights_B)
    return Loss(0.5 * (ab + ba), jnp.sum(weights_B), {"recall": ab_right, "recall_back": ba_right})


def _softmax_way(logits_BB, same_BB, weights_B) -> tuple[jax.Array, Sum]:
    there_BB = jnp.broadcast_to(weights_B[None, :] > 0, logits_BB.shape)
    positive_BB = (same_BB & there_BB).astype(jnp.float32)
    target_BB = positive_BB / jnp.maximum(jnp.sum(positive_BB, axis=1, keepdims=True), 1)
    log_z_B = jax.nn.logsumexp(jnp.where(there_BB, logits_BB, _NEVER), axis=1)
    loss_B = log_z_B - jnp.sum(target_BB * logits_BB, axis=1)
    return jnp.sum(jnp.where(weights_B > 0, loss_B * weights_B, 0)), _recall(
        logits_BB, same_BB, weights_B
    )


def sigmoid_loss(
    za_BA: Float[Array, "B A"],
    zb_BA: Float[Array, "B A"],
    scale: Float[Array, ""] | float,
    bias: Float[Array, ""] | float,
    same_BB: Bool[Array, "B B"],
    weights_B: Float[Array, " B"] | None = None,
) -> Loss:
    """-log sigmoid(+-(scale za zb^T + bias)), + where same; summed over columns, counted by rows.

    So the mean is a row's sum, as in the SigLIP paper's Algorithm 1 and in `SiglipModel`: it grows
    with the batch.
    """
    weights_B = jnp.ones(za_BA.shape[0], jnp.float32) if weights_B is None else weights_B
    logits_BB = scale * _dot(za_BA, zb_BA) + bias
    loss_BB = -jax.nn.log_sigmoid(jnp.where(same_BB, logits_BB, -logits_BB))
    total = jnp.sum(loss_BB * weights_B[:, None] * weights_B[None, :])
    metrics = {
        "recall": _recall(logits_BB, same_BB, weights_B),
        "recall_back": _recall(_dot(zb_BA, za_BA), same_BB.T, weights_B),
    }
    return Loss(total, jnp.sum(weights_B), metrics)


def hard_negatives(
    key: jax.Array,
    logits_RB: Float[Array, "R B"],
    same_BB: Bool[Array, "B B"],
    weights_B: Float[Array, " B"],
    group: int | None = None,
) -> tuple[Int[Array, " R"], Float[Array, " R"]]:
    """Draws for each of the first R rows another row, with probability softmax(logits).

    Args:
      key: random key of the draw.
      logits_RB: scaled similarity of anchor and candidate.
      same_BB: pairs that are no negatives.
      weights_B: rows of weight 0 are no candidates.
      group: see `ITM`.

    Returns:
      The row drawn, and 1 where there was a candidate at all, else 0.
    """
    anchors, rows = logits_RB.shape
    allowed_RB = ~same_BB[:anchors] & (weights_B[None, :] > 0)
    if group is not None:
        allowed_RB &= jnp.arange(anchors)[:, None] // group == jnp.arange(rows)[None, :] // group
    drawn_R = jax.random.categorical(key, jnp.where(allowed_RB, logits_RB, _NEVER), axis=-1)
    return drawn_R, jnp.any(allowed_RB, axis=-1).astype(jnp.float32)


def _embed(view: View, pair: tuple[str, str]):
    """Unit vectors of both, [B,A] each; which first is right for which second; a weight a row."""
    rows, model = view.rows, view.model
    z, there_B = [], view.valid
    # Row's text, column's picture: a picture's classes are those of all its captions.
    classes_BA = view["classes"] if "classes" in view.fields else view["class"][:, None]
    same_BB = jnp.any(view["class"][:, None, None] == classes_BA[None], axis=-1)
    same_BB = same_BB if pair[0] == "text" else same_BB.T
    for name in pair:
        vectors = view.vectors(name)
        share = rows // vectors.x.shape[0]
        z.append(shard(jnp.repeat(model.align(name, vectors.x), share, axis=0), "BA"))
        there_B = there_B * jnp.repeat(vectors.there, share)
        # Texts that share an image are right for it, whatever their classes.
        number_B = jnp.arange(rows) // share
        same_BB |= number_B[:, None] == number_B[None, :]
    return z[0], z[1], same_BB, there_B


def _take(tokens: Tokens, index_R: jax.Array, rows: int) -> Tokens:
    """Rows of the batch by number, where consecutive ones may share an image."""
    index_R = index_R // (rows // tokens.x.shape[0])
    taken = jax.tree.map(lambda a: jnp.take(a, index_R, axis=0), tokens)
    return taken.with_x(shard(taken.x, "BTD"))


def _dot(a_BA: jax.Array, b_BA: jax.Array) -> jax.Array:
    # Full float32 on TPU and GPU too: at scale 100, bfloat16 products would be off by whole nats.
    return jnp.einsum("BA,CA->BC", a_BA, b_BA, precision=jax.lax.Precision.HIGHEST)


def _recall(logits_BB, same_BB, weights_B) -> Sum:
    """Rows whose most similar candidate is one of their positives."""
    best_B = jnp.argmax(jnp.where(weights_B[None, :] > 0, logits_BB, _NEVER), axis=1)
    right_B = jnp.take_along_axis(same_BB, best_B[:, None], axis=1)[:, 0]
    return jnp.sum(jnp.where(right_B, weights_B, 0)), jnp.sum(weights_B)


def _anchors(asked: int | None, rows: int) -> int:
    if asked is not None and not 0 < asked <= rows:
        raise UserError(
            f"ITM rows={asked}, but the stream has {rows} rows a batch; use 1 to {rows}"
        )
    return rows if asked is None else asked
