"""Losses that layers sow, such as the balance of a router's experts, as an objective."""

from typing import ClassVar

import jax.numpy as jnp

from llama_jax.checked import checked
from llama_jax.objectives.base import Acts, Loss, Objective


@checked
class Sown(Objective):
    """The mean of one loss over the layers that sow it, in all passes of the other objectives.

    A layer says `self.sow("losses", "balance", value)`; its value is of the rows that it sees, so
    with micro-batches, or the stages of a pipeline, the loss is the mean over those. A pass whose
    activations are kept or computed again counts once.

    Attributes:
      loss: name of the sown loss.
    """

    loss: str = "balance"

    last: ClassVar[bool] = True

    @property
    def needs(self) -> tuple[str, ...]:
        """No field of its own."""
        return ()

    @property
    def sown(self) -> tuple[str, ...]:
        """The one."""
        return (self.loss,)

    def __call__(self, acts: Acts) -> Loss:
        """The sum of its values, and how many there are."""
        values = [jnp.ravel(value).astype(jnp.float32) for value in acts.sown.get(self.loss, [])]
        both = jnp.concatenate(values) if values else jnp.zeros(0)
        return Loss(jnp.sum(both), jnp.full((), both.size, jnp.float32))
