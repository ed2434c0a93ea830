"""Losses that layers sow, such as the balance of a router's experts, as an objective."""

from dataclasses import dataclass
from typing import ClassVar

import jax.numpy as jnp

from llama_jax.errors import UserError, nearest
from llama_jax.objectives.base import Acts, Loss, Objective


@dataclass(frozen=True)
class Sown(Objective):
    """The mean of one loss over the layers that sow it, in all passes of the other objectives.

    A layer says `self.sow("losses", "balance", value)`; its value is of the rows that it sees, so
    with micro-batches, or the stages of a pipeline, the loss is the mean over those.

    Attributes:
      loss: its name.
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
        """The mean, counted once.

        Raises:
          UserError: no layer sows it.
        """
        found = acts.sown
        if self.loss not in found:
            raise UserError(
                f"no layer of the model sows a loss {self.loss!r}; there are "
                f"{', '.join(found) or 'none'} (a model that is applied by hand needs "
                f"mutable=['losses'])." + nearest(self.loss, found)
            )
        values = jnp.concatenate([jnp.ravel(value) for value in found[self.loss]])
        return Loss(jnp.mean(values.astype(jnp.float32)), jnp.ones((), jnp.float32))
