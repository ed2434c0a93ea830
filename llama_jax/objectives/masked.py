"""BERT's two objectives, ALBERT's sentence order, and masked tokens with a picture in sight."""

from typing import ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from llama_jax.axes import shard
from llama_jax.checked import checked
from llama_jax.errors import UserError, nearest
from llama_jax.kernels.cross_entropy.api import accuracy, cross_entropy
from llama_jax.objectives.base import Acts, Loss, Objective, score

_SOURCES = ("text", "fused")


@checked
class MLM(Objective):
    """Predicts the tokens that the data masked: -(1/|M|) sum over i in M of log p(x_i | x~).

    Devlin et al. 2018 (arXiv:1810.04805). Only the masked positions reach the vocabulary. With
    `source="fused"` the tokens have looked at the stream's images first (image-grounded MLM).

    Attributes:
      source: whose vectors predict, "text" or "fused".
    """

    source: str = "text"

    evaluation: ClassVar[str] = "scores"
    predicts: ClassVar[tuple[str, str]] = ("mlm_targets", "mlm_weights")

    def __post_init__(self):
        if self.source not in _SOURCES:
            raise UserError(
                f"MLM source={self.source!r} is not one of {', '.join(_SOURCES)}"
                + nearest(self.source, _SOURCES)
            )

    @property
    def needs(self) -> tuple[str, ...]:
        """Corrupted text, and the positions, ids and weights to predict."""
        return ("text", "mlm_positions", "mlm_targets", "mlm_weights")

    def __call__(self, acts: Acts) -> Loss:
        """Sum over masked tokens; metric `accuracy`."""
        view = acts[self.on]
        if self.source == "fused" and len(view.modalities) < 2:
            raise UserError(
                f"MLM(source='fused') needs an image or a video beside the text; stream "
                f"{self.on!r} has {', '.join(view.fields)}. Use source='text' or add pictures"
            )
        tokens = view.text if self.source == "text" else view.fused["text"]
        x_BAD = gather_positions(tokens.x, view["mlm_positions"])
        weights_BA = view["mlm_weights"] * view.valid[:, None]
        total, count, right_BA = score(view.model.mlm(x_BAD), view["mlm_targets"], weights_BA)
        right = jnp.sum(jnp.where(right_BA, weights_BA, 0))
        return Loss(total, count, {"accuracy": (right, count)})


@checked
class NSP(Objective):
    """Does sentence B follow A? 0 = it does, 1 = it is random. Devlin et al. 2018."""

    evaluation: ClassVar[str] = "scores"
    predicts: ClassVar[tuple[str, None]] = ("next", None)

    @property
    def needs(self) -> tuple[str, ...]:
        """Two pieces of one text, and which of two answers is right."""
        return ("text", self.predicts[0])

    def __call__(self, acts: Acts) -> Loss:
        """Sum over pairs; metric `accuracy`."""
        view, name = acts[self.on], self.predicts[0]  # the field's, and the head's too
        head = getattr(view.model, name)
        logits_BA = head(view.text, view["text"], view.fields.get("text_types"))
        return label_loss(logits_BA, view[name], view.valid)


@checked
class SOP(NSP):
    """Are two consecutive segments in order (0) or swapped (1)? ALBERT, arXiv:1909.11942."""

    predicts: ClassVar[tuple[str, None]] = ("order", None)


def gather_positions(
    x_BTD: Float[Array, "B T D"], positions_BA: jax.Array
) -> Float[Array, "B A D"]:
    """The vectors at the given positions of each row."""
    return shard(jnp.take_along_axis(x_BTD, positions_BA[..., None], axis=1), "BAD")


def label_loss(
    logits_BA: Float[Array, "B A"], label_B: jax.Array, weights_B: Float[Array, " B"]
) -> Loss:
    """Cross-entropy and accuracy of one label a row; a label below 0 is unknown and is left out."""
    weights_B = jnp.where(label_B >= 0, weights_B, 0)
    total, count = cross_entropy(logits_BA, label_B, weights_B)
    return Loss(total, count, {"accuracy": accuracy(logits_BA, label_B, weights_B)})
