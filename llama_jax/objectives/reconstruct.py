"""Pictures: what an image tokenizer loses of them, and writing their words after a text."""

from typing import ClassVar

import jax.numpy as jnp
from jaxtyping import Array, Float

from llama_jax.checked import checked
from llama_jax.models.image_tokenizer import signed
from llama_jax.objectives.base import Acts, Loss, Objective, View
from llama_jax.objectives.language import decoder_loss

RANGE = 2.0  # of pixels in -1 to 1, the signal's peak
LEAST = 1e-10  # of a mean square, where the logarithm ends: 106 dB


@checked
class Reconstruct(Objective):
    """Mean squared error of a picture after the image tokenizer of the model.

    The code book of `FSQ` needs no loss of its own.
    """

    evaluation: ClassVar[str] = "reconstructions"

    @property
    def needs(self) -> tuple[str, ...]:
        """The picture."""
        return ("image",)

    def __call__(self, acts: Acts) -> Loss:
        """Sum over pictures, in pixels of -1 to 1; metric `psnr`, a picture's in decibels."""
        view = acts[self.on]
        image = view["image"]
        error = view.model.reconstruct(image) - signed(image)
        square_I = jnp.mean(error * error, axis=(1, 2, 3))
        there_I = there(view)
        count = jnp.sum(there_I)
        return Loss(
            jnp.sum(square_I * there_I), count, {"psnr": (jnp.sum(psnr(square_I) * there_I), count)}
        )


@checked
class Draw(Objective):
    """Cross-entropy of the words of a picture, row by row, after reading the text alone.

    The image tokenizer is not trained by it; freeze its weights, `("pictures/*", 0.0)` in the
    optimizer's groups, or they decay.
    """

    evaluation: ClassVar[str] = "drawings"
    borrows: ClassVar[str] = "pictures/"

    @property
    def needs(self) -> tuple[str, ...]:
        """The text, the picture, and the token that writing begins with."""
        return ("text", "image", "tokens")

    def __call__(self, acts: Acts) -> Loss:
        """Sum over words; metrics `accuracy` a word and `exact` a picture."""
        view = acts[self.on]
        words_BP = view.model.words_of(view["image"])
        tokens_BP = jnp.concatenate([view["tokens"], words_BP[:, :-1]], axis=1)
        memory = view.model.join(view.model.fuse({"text": view.text}))
        readout = view.model.readout(tokens_BP, memory)
        weights_BP = jnp.broadcast_to(view.valid[:, None], words_BP.shape)
        return decoder_loss(readout, words_BP, weights_BP)


def there(view: View) -> Float[Array, " I"]:
    """1 for pictures that exist, 0 for those of rows that fill a batch, or marked as absent."""
    rows = len(view["image"])
    there_I = jnp.max(view.valid.reshape(rows, -1), axis=1)
    absent = view.fields.get("image_valid")
    return there_I if absent is None else there_I * absent.astype(jnp.float32)


def psnr(square_I: Float[Array, " I"]) -> Float[Array, " I"]:
    """Peak signal-to-noise ratio in decibels, of mean squares."""
    return 10 * jnp.log10(RANGE**2 / jnp.maximum(square_I, LEAST))
