"""Generation: next-token losses of a decoder, with or without something to read."""

from typing import ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from llama_jax.checked import checked
from llama_jax.limits import check_limits
from llama_jax.models.logits import Logits
from llama_jax.objectives.base import Acts, Loss, Objective, View, score

_TARGETS = ("tokens", "targets", "loss_weights")


@checked
class Seq2Seq(Objective):
    """Cross-entropy of the target given all of the stream's modalities (teacher forcing).

    Sutskever et al. 2014; the decoder ids are the target shifted right. Over a stream of the task
    `Denoise` this is T5's span corruption (arXiv:1910.10683).

    Attributes:
      label_smoothing: share of the target spread over the vocabulary; Vaswani et al. 2017 used 0.1.
      z_loss: coefficient of log(Z)^2.
    """

    label_smoothing: float = 0.0
    z_loss: float = 0.0

    def __post_init__(self):
        check_limits(self, "label_smoothing", "z_loss")

    evaluation: ClassVar[str] = "texts"

    @property
    def needs(self) -> tuple[str, ...]:
        """Decoder ids, targets and their weights."""
        return _TARGETS

    def __call__(self, acts: Acts) -> Loss:
        """Sum over target tokens; metrics `accuracy` a token and `exact` a row."""
        view = acts[self.on]
        weights_BT = view["loss_weights"] * view.valid[:, None]
        return decoder_loss(
            self.decoded(view), view["targets"], weights_BT, self.label_smoothing, self.z_loss
        )

    def decoded(self, view: View) -> Logits:
        """What the decoder says after reading every modality of the stream."""
        return view.decoded


@checked
class CausalLM(Seq2Seq):
    """Next-token prediction without a memory; packed rows by `segments` and `positions`."""

    evaluation: ClassVar[str] = "scores"
    predicts: ClassVar[tuple[str, str]] = ("targets", "loss_weights")

    def decoded(self, view: View) -> Logits:
        """What the decoder says on its own."""
        return view.decode(None)


@checked
class SeenLM(Seq2Seq):
    """Cross-entropy of what a decoder writes after a text with pictures, over a stream of `Seen`.

    For models with a method `see`: `CrossVision`.
    """

    evaluation: ClassVar[str] = "scores"
    predicts: ClassVar[tuple[str, str]] = ("targets", "loss_weights")
    shown: ClassVar[tuple[str, ...]] = ("pixels", "grid", "spans")  # what `see` is given

    @property
    def needs(self) -> tuple[str, ...]:
        """The text, and the pictures beside it."""
        return (*_TARGETS, *self.shown)

    def decoded(self, view: View) -> Logits:
        """What the decoder says, looking at the pictures."""
        return view.decode(view.model.see(*(view[field] for field in self.shown)))


@checked
class AmongLM(SeenLM):
    """The same over a stream of `SeenAmong`, for models that read pictures among the words.

    These are `EarlyVision`.
    """

    shown: ClassVar[tuple[str, ...]] = ("pixels", "at")


@checked
class Caption(Seq2Seq):
    """Cross-entropy of a caption given the image alone, even if the stream has text to encode.

    Attributes:
      source: the modality that the caption is of.
    """

    source: str = "image"

    evaluation: ClassVar[str] = "captions"

    @property
    def needs(self) -> tuple[str, ...]:
        """The picture and the caption."""
        return (self.source, *_TARGETS)

    def decoded(self, view: View) -> Logits:
        """What the decoder says after seeing the picture."""
        if view.modalities == (self.source,):
            return view.decoded  # The passes may be shared with another objective.
        fused = view.model.fuse({self.source: view.repeated(self.source)})
        return view.decode(view.model.join(fused))


def decoder_loss(
    readout: Logits,
    target_BT: jax.Array,
    weights_BT: Float[Array, "B T"],
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
) -> Loss:
    """Cross-entropy over tokens, with the share of right tokens and of rows right throughout."""
    total, count, right_BT = score(readout, target_BT, weights_BT, label_smoothing, z_loss)
    real_BT = weights_BT > 0
    row_B = jnp.any(real_BT, axis=-1)
    exact_B = jnp.all(right_BT | ~real_BT, axis=-1) & row_B
    return Loss(
        total,
        count,
        {
            "accuracy": (
                jnp.sum(right_BT & real_BT, dtype=jnp.float32),
                jnp.sum(real_BT, dtype=jnp.float32),
            ),
            "exact": (jnp.sum(exact_B, dtype=jnp.float32), jnp.sum(row_B, dtype=jnp.float32)),
        },
    )
