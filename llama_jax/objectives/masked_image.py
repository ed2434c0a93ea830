"""Masked image modelling: the pixels of patches that were hidden."""

from typing import ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from llama_jax.checked import checked
from llama_jax.errors import UserError
from llama_jax.models.pixels import normalised, patches
from llama_jax.models.vision import filled_up, scaled
from llama_jax.objectives.base import Acts, Loss, Objective


@checked
class MIM(Objective):
    """Mean squared error of the pixels of hidden patches: MAE's and VideoMAE's loss.

    He et al. 2021 (arXiv:2111.06377), Tong et al. 2022 (arXiv:2203.12602). All patches pass the
    encoder, the hidden ones as a learned patch, as in SimMIM (Xie et al. 2021, arXiv:2111.09886):
    so one encoder serves with any stem, and no decoder of pixels is needed.

    Attributes:
      source: whose patches, "image" or "video".
      rate: share of the patches that are hidden, the same number in every picture.
      normalise: whether each patch is predicted with mean 0 and variance 1.
    """

    source: str = "image"
    rate: float = 0.6
    normalise: bool = True

    evaluation: ClassVar[str] = "pixels"

    def __post_init__(self):
        if self.source not in ("image", "video"):
            raise UserError(f"MIM source={self.source!r}; expected 'image' or 'video'")
        if not 0 < self.rate < 1:
            raise UserError(f"rate={self.rate} of MIM; expected above 0 and below 1; try 0.6")

    @property
    def needs(self) -> tuple[str, ...]:
        """The pictures alone."""
        return (self.source,)

    def __call__(self, acts: Acts) -> Loss:
        """Sum over hidden patches; metric `mean`, the same of the mean of the visible ones."""
        view = acts[self.on]
        if self.source == "video" and getattr(view.model.config, "video", None) is not None:
            raise UserError(
                "MIM(source='video') hides patches of the encoder of pictures, and videos have one "
                "of their own here; try source='image', or Multimodal without `video`"
            )
        frames, side = view.model.patch
        video = filled_up(scaled(view[self.source]), frames)
        target_IPA = patches(video, frames, side)
        hidden_IP = draw(acts.key, len(video), target_IPA.shape[1], self.rate)
        valid_I = view.fields.get(f"{self.source}_valid")
        seen = view.model.encode_image(view.model.hide(video, hidden_IP), valid_I)
        found_IPA = view.model.pixels(seen.x)
        if self.normalise:
            target_IPA = normalised(target_IPA)
        there_I = jnp.max(view.valid.reshape(len(video), -1), axis=1) > 0
        there_IP = (there_I[:, None] & seen.valid).astype(jnp.float32)
        weights_IP = hidden_IP * there_IP
        usual_I1A = visible_mean(target_IPA, there_IP * ~hidden_IP)
        total, count = squared_error(found_IPA, target_IPA, weights_IP)
        return Loss(total, count, {"mean": squared_error(usual_I1A, target_IPA, weights_IP)})


def draw(key: jax.Array, images: int, count: int, rate: float) -> Bool[Array, "I P"]:
    """Which patches are hidden: as many in each picture, at least one and not all."""
    drawn_IP = jax.random.uniform(key, (images, count))
    rank_IP = jnp.argsort(jnp.argsort(drawn_IP, axis=1), axis=1)
    return rank_IP < min(max(1, round(rate * count)), max(1, count - 1))


def squared_error(
    found_IPA: Float[Array, "I M A"],
    target_IPA: Float[Array, "I P A"],
    weights_IP: Float[Array, "I P"],
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """The sum over patches of their mean squared error, and how many there are."""
    error_IP = jnp.mean(jnp.square(found_IPA - target_IPA), axis=-1)
    return jnp.sum(error_IP * weights_IP), jnp.sum(weights_IP)


def visible_mean(
    target_IPA: Float[Array, "I P A"], weights_IP: Float[Array, "I P"]
) -> Float[Array, "I M A"]:
    """The mean patch of each picture, [I, 1, A]: what may be said without a model."""
    total_I1A = jnp.einsum("IPA,IP->IA", target_IPA, weights_IP)[:, None]
    return total_I1A / jnp.maximum(jnp.sum(weights_IP, axis=1), 1)[:, None, None]
