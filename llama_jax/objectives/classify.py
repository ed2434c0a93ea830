"""Classification of a row: sentiment, topic, kind of image."""

from typing import ClassVar

from llama_jax.checked import checked
from llama_jax.errors import UserError
from llama_jax.limits import check_limits
from llama_jax.models.tokens import pool
from llama_jax.objectives.base import Acts, Loss, Objective
from llama_jax.objectives.masked import label_loss


@checked
class Classify(Objective):
    """Cross-entropy of `label` from the text's first token, or the mean image token without text.

    With several modalities the tokens are the fused ones.

    Attributes:
      labels: number of classes; checked against the model's head. 0 takes the head's.
    """

    labels: int = 0

    def __post_init__(self):
        check_limits(self, "labels")

    evaluation: ClassVar[str] = "scores"
    predicts: ClassVar[tuple[str, None]] = ("label", None)

    @property
    def needs(self) -> tuple[str, ...]:
        """The label; text, image or video are read if they are there."""
        return ("label",)

    def __call__(self, acts: Acts) -> Loss:
        """Sum over labelled rows; metric `accuracy`."""
        view = acts[self.on]
        if not view.modalities:
            raise UserError(f"Classify on {self.on!r} needs text, image or video beside the label")
        first = view.modalities[0]
        tokens = (view.fused if len(view.modalities) > 1 else view.streams)[first]
        x_BD = tokens.x[:, 0] if first == "text" else pool(tokens)
        logits_BA = view.model.classify(x_BD)
        if self.labels not in (0, logits_BA.shape[-1]):
            raise UserError(
                f"Classify(labels={self.labels}), but the model's head has {logits_BA.shape[-1]}; "
                "give both the same number"
            )
        return label_loss(logits_BA, view["label"], view.valid)
