"""The losses of a run on what its streams hold out, before the first step and while it trains."""

import itertools
from collections.abc import Callable, Iterator
from typing import Any

import flax.linen as nn
import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from llama_jax.config import Run
from llama_jax.data.held_out import NAME
from llama_jax.data.loader import Stream, one_pass
from llama_jax.objectives.base import losses
from llama_jax.text.vocabulary import Vocabulary
from llama_jax.train.accumulate import Batch
from llama_jax.train.rows import put

__all__ = ["NAME", "HeldOut"]

TARGETS = "loss_weights"  # of a text that is written, a target a token
ROWS = 512  # of each stream that are measured, so that measuring takes no longer than training


class HeldOut:
    """Measures the losses of objectives that predict tokens, labels or texts.

    The rows are the first of what a stream holds out, the same each time, without dropout.

    Args:
      run: the run.
      model: the unbound module.
      tokenizer: for the texts.
      mesh: the devices.
      part: the part of a batch's rows that this process reads, of how many.
    """

    def __init__(
        self, run: Run, model: nn.Module, tokenizer: Vocabulary, mesh: Mesh, part: tuple[int, int]
    ):
        self._run, self._model, self._mesh = run, model, mesh
        self._read = lambda stream: _some(stream, tokenizer, part)
        self._batches: dict[str, list[dict[str, Any]]] = {}
        self._scores: dict[str, Callable[..., Any]] = {}

    def __bool__(self) -> bool:
        """Whether there is anything to measure."""
        return bool(self._streams())

    def __call__(self, params: Any) -> dict[str, float]:
        """Loss and accuracy of every objective by name, "lm_loss"; a meeting of all processes.

        Raises:
          UserError: what is held out cannot be read, or nothing is.
        """
        self.read()
        found: dict[str, float] = {}
        for name, batches in self._batches.items():
            total: Any = None
            for batch in batches:
                rows = put(batch, self._mesh, self._run.rules)
                part = jax.tree.map(float, jax.device_get(self._scores[name](params, rows)))
                total = part if total is None else jax.tree.map(float.__add__, total, part)
            for entry, (value, count) in total.items():
                found[entry] = value / max(count, 1)
        return found

    def read(self) -> None:
        """Reads what is held out, if it was not yet; errors as of a call."""
        for name, stream in self._streams().items():
            if name not in self._batches:
                self._batches[name] = list(self._read(stream))
                self._scores[name] = self._score(name)

    def _streams(self) -> dict[str, Stream]:
        there = ((name, stream) for name, stream in self._run.data.items() if self._goals(name))
        found = {name: getattr(stream, "measured", None) for name, stream in there}
        return {name: stream for name, stream in found.items() if stream is not None}

    def _goals(self, name: str) -> dict[str, Any]:
        every = self._run.objectives.items()
        return {k: o for k, o in every if o.on == name and (o.predicts or TARGETS in o.needs)}

    def _score(self, name: str) -> Callable[..., Any]:
        compute, model = losses(self._goals(name)), self._model

        def score(params: Any, batch: Batch) -> dict[str, Any]:
            args = {name: batch}, jax.random.key(0)
            found: Any = model.apply({"params": params}, *args, method=compute)[1]
            sums = {f"{goal}_loss": (loss.sum, loss.count) for goal, loss in found.items()}
            for goal, loss in found.items():
                if "accuracy" in loss.metrics:
                    sums[f"{goal}_accuracy"] = loss.metrics["accuracy"]
            return sums

        return jax.jit(score, out_shardings=NamedSharding(self._mesh, PartitionSpec()))


def _some(stream: Stream, tokenizer: Vocabulary, part: tuple[int, int]) -> Iterator[dict[str, Any]]:
    batches = one_pass(stream, tokenizer, None, *part)
    return itertools.islice(batches, -(-ROWS // stream.batch))
