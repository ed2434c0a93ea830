"""How fast a run is, and what its time goes into."""

import contextlib
import json
import resource
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax

from llama_jax.chips import peak

SPEEDS = (
    *("seconds_per_step", "examples_per_second", "tokens_per_second"),
    *("tokens_per_second_per_device", "tflops_per_device", "mfu"),
)


@dataclass(frozen=True)
class Machine:
    """What the speeds of a run are measured against.

    Attributes:
      devices: how many devices the mesh has, over all processes.
      kind: what jax calls them, e.g. "TPU v5 lite".
      flops: model FLOPs of a step of all devices together (see `train/flops.py`), if known.
      shares: into how many parts a batch is split over processes.
    """

    devices: int = 1
    kind: str = "cpu"
    flops: float | None = None
    shares: int = 1

    def speeds(self, steps: int, rows: int, tokens: int, seconds: float) -> dict[str, float | None]:
        """Speeds of so many steps.

        Args:
          steps: done.
          rows: in this process's share of their batches.
          tokens: in it that are no padding; other shares are taken to have as many.
          seconds: how long they took.

        Returns:
          `tflops_per_device` counts model FLOPs, and `mfu` is their share of the bfloat16 peak, or
          None where the chip is not in the table of peaks (a CPU). All are None of no steps.
        """
        if not steps:
            return dict.fromkeys(SPEEDS)
        most = peak(self.kind)
        flops = None if self.flops is None else self.flops * steps / seconds / self.devices
        return {
            "seconds_per_step": seconds / steps,
            "examples_per_second": rows * self.shares / seconds,
            "tokens_per_second": tokens * self.shares / seconds,
            "tokens_per_second_per_device": tokens * self.shares / seconds / self.devices,
            "tflops_per_device": None if flops is None else flops / 1e12,
            "mfu": None if most is None or flops is None else flops / most,
        }


class Rates:
    """Rows, tokens and seconds since the last lap, and good seconds since the run first began.

    Good are the seconds of steps that changed the weights and were not lost: neither compiling,
    evaluating and loading nor steps that a restart did again, nor the time between two starts.
    """

    def __init__(self):
        self._machine = Machine()
        self._start = self._last = time.perf_counter()
        self._began = time.time()
        self._steps = self._rows = self._tokens = 0
        self._good = self._waited = self._skipped = 0.0

    def resume(self, metrics: Path) -> None:
        """Goes on from what earlier calls wrote to the file of the run's metrics."""
        lines = map(json.loads, metrics.read_text().splitlines()) if metrics.exists() else ()
        if before := [line for line in lines if "good_seconds" in line]:
            self._began = before[0]["time"] - before[0]["seconds"]
            self._good, self._skipped = before[-1]["good_seconds"], before[-1].get("skipped") or 0.0

    def begin(self, machine: Machine) -> None:
        """Begins a lap on a machine; what was until now (compiling) says nothing of the speed."""
        self._machine = machine
        self._clear()

    def count(self, batch: Mapping[str, Mapping[str, Any]]) -> None:
        """Adds a batch: its rows of text, and its tokens that are not padding."""
        self._steps += 1
        for fields in batch.values():
            self._rows += max(len(x) for x in fields.values())
            for name in ("text_valid", "loss_weights"):
                if name in fields:
                    self._tokens += int((fields[name] > 0).sum())

    @contextlib.contextmanager
    def pause(self) -> Iterator[None]:
        """The time of the block is left out of the lap."""
        begin = time.perf_counter()
        yield
        self._last += time.perf_counter() - begin

    @contextlib.contextmanager
    def waiting(self) -> Iterator[None]:
        """The time of the block is that of waiting for data."""
        begin = time.perf_counter()
        yield
        self._waited += time.perf_counter() - begin

    def lap(self, skipped: float = 0.0) -> dict[str, float | None]:
        """What happened since the last lap.

        Args:
          skipped: steps since the run began that changed nothing.
        """
        now = time.perf_counter()
        seconds = max(now - self._last, 1e-9)
        self._good += seconds * max(1 - (skipped - self._skipped) / max(self._steps, 1), 0.0)
        self._skipped = skipped
        out: dict[str, float | None] = {"seconds": now - self._start, "time": time.time()}
        out |= self._machine.speeds(self._steps, self._rows, self._tokens, seconds)
        out |= {
            "data_wait": min(self._waited / seconds, 1.0),
            "memory_gb": memory() / 1e9,
            "good_seconds": self._good,
            "goodput": min(self._good / max(time.time() - self._began, 1e-9), 1.0),
        }
        self._clear()
        return out

    def _clear(self) -> None:
        self._last = time.perf_counter()
        self._steps = self._rows = self._tokens = 0
        self._waited = 0.0


def memory() -> int:
    """Bytes in use at most: of the fullest device here, or of the process where devices keep none.

    A CPU's devices keep no account, and what they hold is the process's.
    """
    used = [device.memory_stats() or {} for device in jax.local_devices()]
    most = max((stats.get("peak_bytes_in_use", 0) for stats in used), default=0)
    if most:
        return most
    peak_rss = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak_rss * (1 if sys.platform == "darwin" else 1024)
