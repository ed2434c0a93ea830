"""Where metrics are written: metrics.jsonl, TensorBoard, Weights & Biases; and heartbeats."""

import hashlib
import importlib
import json
import os
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from llama_jax.errors import UserError
from llama_jax.files import whole_file

Values = Mapping[str, float | None]


class Sink(Protocol):
    """Takes the metrics of a step; values that are not finite are None."""

    def write(self, step: int, values: Values) -> None:
        """Writes them, and flushes: a killed run must not lose lines."""
        ...

    def close(self) -> None:
        """Closes what is open."""
        ...


class JsonLines:
    """One JSON object a line; what the file holds of steps after `step` is dropped."""

    def __init__(self, path: Path, step: int):
        forget_after(path, step)
        self._file = path.open("a")

    def write(self, step: int, values: Values) -> None:
        """See `Sink`."""
        self._file.write(json.dumps({"step": step} | dict(values)) + "\n")
        self._file.flush()

    def close(self) -> None:
        """See `Sink`."""
        self._file.close()


class TensorBoard:
    """Event files, of which TensorBoard shows what is not after `step`."""

    def __init__(self, path: Path, step: int):
        purge = step + 1 if step else None
        self._board = _tensorboard().SummaryWriter(str(path), purge_step=purge)

    def write(self, step: int, values: Values) -> None:
        """See `Sink`."""
        for name, value in values.items():
            if value is not None:
                self._board.add_scalar(name, value, step)
        self._board.flush()

    def close(self) -> None:
        """See `Sink`."""
        self._board.close()


class WandB:
    """Weights & Biases, if it is installed; its key comes from the environment and stays there.

    Args:
      project: where to.
      place: the run directory; the same one goes on in the same W&B run.
      run: the resolved run, JSON.

    Raises:
      UserError: it is not installed, or there is no key.
    """

    def __init__(self, project: str, place: Path, run: str):
        try:
            wandb = importlib.import_module("wandb")
        except ModuleNotFoundError:
            raise UserError("--wandb needs the package wandb; try: pip install wandb") from None
        offline = os.environ.get("WANDB_MODE") in ("offline", "disabled")
        if not offline and not os.environ.get("WANDB_API_KEY"):
            raise UserError(
                "W&B needs its key in the environment: set WANDB_API_KEY, or WANDB_MODE=offline"
            )
        config = json.loads(run)
        self._run = wandb.init(
            project=project,
            name=config.get("name"),
            id=hashlib.sha256(str(place).encode()).hexdigest()[:16],
            resume="allow",
            dir=str(place),
            config=config,
        )

    def write(self, step: int, values: Values) -> None:
        """See `Sink`."""
        self._run.log({k: v for k, v in values.items() if v is not None}, step=step)

    def close(self) -> None:
        """See `Sink`."""
        self._run.finish()


class Heartbeat:
    """The steps of one process of several, each with its time: who stopped first is seen here."""

    def __init__(self, path: Path):
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = path.open("a")

    def write(self, step: int) -> None:
        """Appends a line."""
        self._file.write(json.dumps({"step": step, "time": round(time.time(), 3)}) + "\n")
        self._file.flush()

    def close(self) -> None:
        """Closes the file."""
        self._file.close()


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
    with whole_file(path) as draft:
        draft.write_text("".join(kept))


def last_metrics(path: Path) -> dict[str, float | None]:
    """The last line of training metrics."""
    lines = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    return next((line for line in reversed(lines) if "loss" in line), {})


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
