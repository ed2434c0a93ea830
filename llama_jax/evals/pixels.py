"""Masked image modelling: how far the pixels of hidden patches are from what was there."""

from typing import Any

import jax

from llama_jax.checked import checked
from llama_jax.evals.base import Eval, Row, held_out
from llama_jax.objectives import losses
from llama_jax.train.load import Trained


@checked
class Pixels(Eval):
    """Mean squared error of hidden patches, in the units of the objective `name`.

    The baseline says of each hidden patch the mean of the visible ones of its picture. Which
    patches are hidden is drawn anew for every batch, the same at each evaluation.
    """

    batch: int = 64

    def rows(self, trained: Trained) -> list[Row]:
        """One row."""
        stream, data = held_out(self.stream(trained))
        compute = losses({self.name: trained.run.objectives[self.name]})

        @jax.jit
        def score(params, batch, number):
            args = {self.on: batch}, jax.random.key(number)
            found: Any = trained.model.apply({"params": params}, *args, method=compute)[1]
            return found[self.name]

        error = usual = count = 0.0
        for number, batch in enumerate(self.batches(stream, trained.tokenizer)):
            loss = jax.device_get(score(trained.params, batch, number))
            error, count = error + float(loss.sum), count + float(loss.count)
            usual += float(loss.metrics["mean"][0])
        row = f"{self.name}_error", error / max(count, 1), usual / max(count, 1)
        return [Row(*row, "mean of the visible patches", int(count), data)]
