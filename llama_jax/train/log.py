"""The log of a run: metrics with their speeds, written to files and shown to people."""

import math
from collections.abc import Callable, Mapping
from typing import Any

import jax

from llama_jax.config import Run
from llama_jax.train.console import Console, short
from llama_jax.train.processes import Together, first, several
from llama_jax.train.rundir import RunDir
from llama_jax.train.throughput import Rates
from llama_jax.train.trackers import Heartbeat, JsonLines, Sink, TensorBoard

# So many steps in a row without a finite gradient do not mend themselves.
HOPELESS = 20


class Log:
    """The log of one run; of several processes the first writes and speaks.

    Args:
      place: the run directory.
      steps: steps of the whole run.
      progress: show anything on the console.
      more: makes another sink of metrics, on the first process.

    Attributes:
      rates: measures the speeds; told of batches, of pauses and when to begin.
    """

    def __init__(
        self,
        place: RunDir,
        steps: int,
        progress: bool = True,
        more: Callable[[], Sink] | None = None,
    ):
        self._place = place
        self._console = Console(steps, progress and first())
        self.rates = Rates()
        self._sinks: list[Sink] = []
        self._more = more
        self._heartbeat: Heartbeat | None = None

    def start(self, step: int) -> None:
        """Opens the files; what they hold of steps after `step` is dropped, for it comes again."""
        if several():
            self._heartbeat = Heartbeat(self._place.heartbeats / f"{jax.process_index()}.jsonl")
        if first():
            self._sinks.append(JsonLines(self._place.metrics, step))
            self.rates.resume(self._place.metrics)
            self._sinks.append(TensorBoard(self._place.tensorboard, step))
            if self._more is not None:
                self._sinks.append(self._more())
        self._console.start(step)

    def metrics(self, step: int, values: dict[str, float]) -> None:
        """Writes the metrics of a training step, with the speeds since the last time."""
        all_values = values | self.rates.lap(values.get("skipped", 0.0))
        self._write(step, all_values)
        self._console.metrics(step, all_values)
        if self._heartbeat is not None:
            self._heartbeat.write(step)

    def evaluation(self, step: int, name: str, values: dict[str, float]) -> None:
        """Writes what an evaluation found."""
        self._write(step, {f"{name}/{key}": value for key, value in values.items()})
        self.say(
            f"{name} at step {step}: " + ", ".join(f"{k} {short(v)}" for k, v in values.items())
        )

    def say(self, text: str) -> None:
        """A line for people."""
        self._console.say(text)

    def close(self) -> None:
        """Flushes and closes everything."""
        self._console.close()
        for sink in self._sinks:
            sink.close()
        if self._heartbeat is not None:
            self._heartbeat.close()

    def _write(self, step: int, values: Mapping[str, float | None]) -> None:
        # JSON has no NaN: a value that is not finite is written as null.
        clean = {
            name: float(v) if v is not None and math.isfinite(v) else None
            for name, v in values.items()
        }
        for sink in self._sinks:
            sink.write(step, clean)


class Late:
    """One step's metrics, held until the next step is dispatched: no device waits for a log.

    Args:
      run: says which steps are logged.
      log: where to.
    """

    def __init__(self, run: Run, log: Log):
        self._run, self._log = run, log
        self._held: tuple[int, dict[str, Any]] | None = None

    @property
    def held(self) -> bool:
        """Whether there is a step that was not reported."""
        return self._held is not None

    def hold(self, step: int, metrics: dict[str, Any]) -> None:
        """Takes a step's metrics, on the device and perhaps not computed yet."""
        self._held = step, metrics

    def report(self) -> None:
        """Waits for the step that is held, if there is one, and logs it if due.

        Raises:
          UserError: too many steps in a row changed nothing.
        """
        if self._held is None:
            return
        (step, metrics), self._held = self._held, None
        run = self._run
        resized = run.batches(step + 1) != run.batches(step)
        if step < run.steps and step % run.log_every and not resized:
            jax.block_until_ready(metrics["loss"])
            return
        values = {name: value.item() for name, value in jax.device_get(metrics).items()}
        values = {"loss": values.pop("loss")} | values
        in_row = values.pop("skipped_in_row")
        self._log.metrics(step, values)
        if in_row >= HOPELESS:
            raise Together(
                f"the last {in_row:.0f} steps to {step} had a loss or gradient that is not finite "
                "and changed nothing; try a lower --optimizer.rate or a longer warmup, from the "
                "checkpoint before"
            )
