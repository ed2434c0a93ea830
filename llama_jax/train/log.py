"""Where metrics go: metrics.jsonl, TensorBoard, and a progress bar or plain lines."""

import contextlib
import importlib
import json
import math
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from llama_jax.train.rundir import RunDir


class Log:
    """The log of one run.

    Args:
      place: the run directory.
      steps: steps of the whole run.
      progress: show anything on the console.
    """

    def __init__(self, place: RunDir, steps: int, progress: bool = True):
        self._place = place
        self._steps = steps
        self._show = progress
        self._clock = Clock()
        self._file: Any = None
        self._board: Any = None
        self._bar: Any = None

    def start(self, step: int) -> None:
        """Opens the files; what they hold of steps after `step` is dropped, for it comes again."""
        forget_after(self._place.metrics, step)
        self._file = self._place.metrics.open("a")
        purge = step + 1 if step else None
        self._board = _tensorboard().SummaryWriter(str(self._place.tensorboard), purge_step=purge)
        if self._show and sys.stderr.isatty() and step < self._steps:
            self._bar = _bar(step, self._steps)

    def count(self, batch: dict[str, dict[str, Any]]) -> None:
        """Notes the rows and the real tokens of a batch (NumPy, this host's) for the speeds."""
        self._clock.count(batch)

    def metrics(self, step: int, values: dict[str, float]) -> None:
        """Writes the metrics of a training step, with the speeds since the last time."""
        values = values | self._clock.lap()
        self._write(step, values)
        line = "  ".join(f"{name} {_short(values[name])}" for name in self._shown(values))
        if self._bar is not None:
            self._bar.update(0, completed=step, note=line)
        elif self._show:
            left = (self._steps - step) * values["seconds_per_step"]
            print(
                f"step {step}/{self._steps}  {line}  left {duration(left)}",
                file=sys.stderr,
                flush=True,
            )

    @staticmethod
    def _shown(values: dict[str, float]) -> list[str]:
        parts = [name for name in values if name.endswith("/loss")]
        speeds = [name for name in ("examples_per_second", "tokens_per_second") if values.get(name)]
        return ["loss", *(parts if len(parts) > 1 else []), *speeds]

    def evaluation(self, step: int, name: str, values: dict[str, float]) -> None:
        """Writes what an evaluation found."""
        self._write(step, {f"{name}/{key}": value for key, value in values.items()})
        self.say(
            f"{name} at step {step}: " + ", ".join(f"{k} {_short(v)}" for k, v in values.items())
        )

    def say(self, text: str) -> None:
        """A line for people."""
        if self._bar is not None:
            self._bar.console.print(text, markup=False, highlight=False)
        elif self._show:
            print(text, file=sys.stderr, flush=True)

    def pause(self):
        """A context whose time (an evaluation) does not count in the speeds."""
        return self._clock.pause()

    def restart(self) -> None:
        """Forgets what was counted for the speeds so far."""
        self._clock.lap()

    def close(self) -> None:
        """Flushes and closes everything."""
        if self._bar is not None:
            self._bar.stop()
        if self._file is not None:
            self._file.close()
            self._board.close()

    def _write(self, step: int, values: dict[str, float]) -> None:
        # JSON has no NaN: a value that is not finite is written as null.
        clean = {name: float(v) if math.isfinite(v) else None for name, v in values.items()}
        self._file.write(json.dumps({"step": step} | clean) + "\n")
        # A killed run must not lose lines: flushed line by line.
        self._file.flush()
        for name, value in clean.items():
            if value is not None:
                self._board.add_scalar(name, value, step)
        self._board.flush()


class Clock:
    """Rows, tokens and seconds since the last lap."""

    def __init__(self):
        self._start = self._last = time.perf_counter()
        self._steps = self._rows = self._tokens = 0

    def count(self, batch: dict[str, dict[str, Any]]) -> None:
        """Adds a batch: its rows of text, and its tokens that are not padding."""
        self._steps += 1
        for fields in batch.values():
            self._rows += max(len(x) for x in fields.values())
            for name in ("text_valid", "target_weights"):
                if name in fields:
                    self._tokens += int((fields[name] > 0).sum())

    @contextlib.contextmanager
    def pause(self) -> Iterator[None]:
        """The time of the block is left out of the lap."""
        begin = time.perf_counter()
        yield
        self._last += time.perf_counter() - begin

    def lap(self) -> dict[str, float]:
        """The speeds, and the seconds since the start."""
        now = time.perf_counter()
        seconds = max(now - self._last, 1e-9)
        out = {
            "seconds": now - self._start,
            "seconds_per_step": seconds / max(self._steps, 1),
            "examples_per_second": self._rows / seconds,
            "tokens_per_second": self._tokens / seconds,
        }
        self._last, self._steps, self._rows, self._tokens = now, 0, 0, 0
        return out


def forget_after(path: Path, step: int) -> None:
    """Drops the lines of later steps, and a last line that a kill cut short."""
    if not path.exists():
        return
    kept = []
    for line in path.read_text().splitlines():
        try:
            if json.loads(line)["step"] <= step:
                kept.append(line + "\n")
        except (ValueError, KeyError, TypeError):
            continue
    draft = path.with_name(path.name + ".unfinished")
    draft.write_text("".join(kept))
    draft.replace(path)


def last_metrics(path: Path) -> dict[str, float | None]:
    """The last line of training metrics."""
    lines = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    return next((line for line in reversed(lines) if "loss" in line), {})


def duration(seconds: float) -> str:
    """85 -> "1:25"."""
    minutes, seconds = divmod(round(max(seconds, 0)), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"


def _short(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def _tensorboard() -> Any:
    """The module tensorboardX, without torch, which it would import (seconds) if it is there."""
    hide = "torch" not in sys.modules
    if hide:
        sys.modules["torch"] = None  # pyright: ignore[reportArgumentType]
    try:
        return importlib.import_module("tensorboardX")
    finally:
        if hide:
            del sys.modules["torch"]


def _bar(start: int, steps: int):
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
    )

    bar = Progress(
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        TimeRemainingColumn(elapsed_when_finished=True),
        TextColumn("{task.fields[note]}"),
        console=Console(stderr=True),
    )
    bar.add_task("", total=steps, completed=start, note="compiling")
    bar.start()
    return bar
