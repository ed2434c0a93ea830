"""Where metrics are written: metrics.jsonl, TensorBoard, Weights & Biases; and heartbeats."""

import hashlib
import importlib
import json
import netrc
import os
import sys
import time
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import urlsplit

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
    """Weights & Biases, if it is installed; its key stays where `wandb login` keeps it.

    Args:
      project: where to.
      place: the run directory; the same one goes on in the same W&B run, one made anew in another.
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
        if not offline and not os.environ.get("WANDB_API_KEY") and not _logged_in():
            raise UserError(
                "W&B needs its key: give `wandb login`, or set WANDB_API_KEY, or WANDB_MODE=offline"
            )
        config = json.loads(run)
        self._run = wandb.init(
            project=project,
            name=config.get("name"),
            id=_wandb_id(place),
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


def _logged_in() -> bool:
    """Whether `wandb login` has left a key for the server in the user's netrc file."""
    place = os.environ.get("NETRC") or Path.home() / ".netrc"
    server = urlsplit(os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai")).hostname or ""
    try:
        return netrc.netrc(place).authenticators(server) is not None
    except (OSError, netrc.NetrcParseError):
        return False


def _wandb_id(place: Path) -> str:
    """The W&B run of a directory, noted in it; those of older versions have it from their path."""
    note, metrics = place / "wandb-id", place / "metrics.jsonl"
    if note.is_file() and (found := note.read_text().strip()):
        return found
    begun = metrics.is_file() and metrics.stat().st_size > 0
    made = hashlib.sha256(str(place).encode()).hexdigest()[:16] if begun else uuid.uuid4().hex[:16]
    with whole_file(note) as draft:
        draft.write_text(made + "\n")
    return made


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
