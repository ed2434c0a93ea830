"""What a language model with eyes says after a question, learned at the answer's tokens alone."""

from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from llama_jax.checked import checked
from llama_jax.models.logits import Logits
from llama_jax.objectives.base import Acts, Loss, View
from llama_jax.objectives.language import Seq2Seq, decoder_loss
from llama_jax.objectives.masked import gather_positions


@checked
class Reply(Seq2Seq):
    """Cross-entropy of answers, each after its question, given a picture.

    Only the answers' places reach the vocabulary: of a text of 16 tokens 3, of which the logits
    are most of the work. Over a stream of the task `Replies`.
    """

    evaluation: ClassVar[str] = "replies"

    @property
    def needs(self) -> tuple[str, ...]:
        """Texts with the places, tokens and weights of their answers, and pictures."""
        return ("tokens", "places", "targets", "loss_weights", "image")

    def __call__(self, acts: Acts) -> Loss:
        """Sum over answer tokens; metrics `accuracy` a token and `exact` an answer."""
        view = acts[self.on]
        weights_BA = view["loss_weights"]
        each = len(weights_BA) // len(view["targets"])
        target_BA = jnp.repeat(view["targets"], each, axis=0)
        return decoder_loss(
            self.decoded(view), target_BA, weights_BA, self.label_smoothing, self.z_loss
        )

    def decoded(self, view: View) -> Logits:
        """What the model says at the answers' places, [B,A,V]."""
        return said(
            view.model, view["tokens"], view["places"], view.model.join({"image": view.image})
        )


def said(model: Any, ids_RT: jax.Array, places_RA: jax.Array, memory: Any) -> Logits:
    """Logits at some places of texts, each of which several rows of the memory may share."""
    x_BTD = model.hidden(model.embed(ids_RT), memory).x
    places_BA = jnp.repeat(places_RA, len(x_BTD) // len(ids_RT), axis=0)
    return model.head(gather_positions(x_BTD, places_BA), formed=False)
