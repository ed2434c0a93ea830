"""The run directory: what is in it, who may write to it, and whether a run may go on in it."""

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import re
import shutil
import socket
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from llama_jax.config.differences import differences
from llama_jax.errors import UserError
from llama_jax.files import whole_file
from llama_jax.text.files import files_of
from llama_jax.train.processes import first, on_first, together

OTHERS = ("config.json", "params.json", "manifest.json")  # of weights, Meta's, and prepared data
REMOTE = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+://")  # gs://bucket/run
# What may differ when a run goes on: how long, how often, on which devices. All else changes what
# the later steps compute, and is refused by name. A user's file that has changed is told of.
FREE = (
    *("steps", "log_every", "eval_every", "save_every", "keep", "evaluations", "mesh", "rules"),
    *("imports", "keep_best", "history"),
)


class RunDir:
    """A run directory; of several processes the first writes it, and all see it:

    run.json         the resolved Run
    tokenizer.json   what turned its text into ids (of others, perhaps with files beside it)
    weights_config.json  the config.json of the Hugging Face folder that it began with
    metrics.jsonl    one JSON object a line
    best.json        the best step, if the run has `keep_best`
    checkpoints/     one directory a step
    tensorboard/     the same metrics for TensorBoard
    heartbeats/      of several processes, the last step and time of each
    profile/         what --profile traced
    lock             held by the process that trains here

    If the `with` block that made it fails before `keep` was called, it is removed again.
    """

    def __init__(self, path: str | os.PathLike[str]):
        """Names it; nothing is made yet.

        Raises:
          UserError: it is no path of a disk.
        """
        if REMOTE.match(os.fspath(path)):
            raise UserError(
                f"run_dir={os.fspath(path)!r}: a run directory lies on a disk that can lock and "
                "rename files; mount the bucket there (gcsfuse for gs://, mount-s3 for s3://), or "
                "train on a disk and copy it"
            )
        self.path = Path(path).absolute()
        self._lock = None
        self._made: list[Path] = []  # the folders that were not there before, the innermost first

    run_json = property(lambda self: self.path / "run.json")
    metrics = property(lambda self: self.path / "metrics.jsonl")
    checkpoints = property(lambda self: self.path / "checkpoints")
    tensorboard = property(lambda self: self.path / "tensorboard")
    heartbeats = property(lambda self: self.path / "heartbeats")
    profile = property(lambda self: self.path / "profile")
    _probe = property(lambda self: self.path / "probe.unfinished")

    def __enter__(self) -> "RunDir":
        """Makes the directory and takes the lock; a meeting of all processes.

        Raises:
          UserError: it cannot be written, another process trains in it, or it is not the same
            for all processes.
        """
        mark = on_first(self._open)
        try:
            with together() as all_see:
                if not first():
                    self._see(mark)
                all_see()
        except UserError:
            self.__exit__(UserError)
            raise
        if first():
            self._probe.unlink()
        return self

    def _open(self) -> str:
        """Opens it for writing; returns a mark that others must find in it."""
        mark = f"{socket.gethostname()} {os.getpid()} {time.time_ns()}"
        other = next((name for name in OTHERS if (self.path / name).exists()), None)
        if other is not None and not self.run_json.exists():
            raise UserError(
                f"{self.path} holds {other}, so that it is no run but weights or data, which would "
                "not open any more; give another --run-dir"
            )
        try:
            self._made = [p for p in (self.path, *self.path.parents) if not p.exists()]
            self.checkpoints.mkdir(parents=True, exist_ok=True)
            self._lock = (self.path / "lock").open("a+")
            self._take_lock()
            # Written and synced: an overfull or read-only disk often says so only then.
            with self._probe.open("w") as file:
                file.write(mark.ljust(1 << 16))
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            self.__exit__(OSError)
            raise _unwritable(self.path, error) from None
        return mark

    def _see(self, mark: str) -> None:
        """Checks that what process 0 wrote can be read here."""
        try:
            found = self._probe.read_text().rstrip()
        except OSError:
            found = ""
        if found != mark:
            raise UserError(
                f"{self.path} is not the directory that process 0 writes to; all processes need "
                "one --run-dir, on a disk that they share"
            )

    def __exit__(self, error: type[BaseException] | None = None, *_: Any) -> None:
        """Gives the lock back; the kernel does so too when a process dies, however it dies."""
        if error is not None and self._made:
            shutil.rmtree(self.path, ignore_errors=True)
            for parent in self._made[1:]:
                with contextlib.suppress(OSError):  # somebody else has put something there
                    parent.rmdir()
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    def keep(self) -> None:
        """Says that what is here is of worth from now on, whatever happens."""
        self._made = []

    def _take_lock(self) -> None:
        assert self._lock is not None
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._lock.seek(0)
            holder = self._lock.read().strip() or "unknown"
            self._lock.close()
            self._lock = None
            raise UserError(
                f"process {holder} is training in {self.path}; wait for it, stop it, or give "
                "another --run-dir"
            ) from None
        self._lock.truncate(0)
        self._lock.write(str(os.getpid()))
        self._lock.flush()

    def require_space(self, checkpoint_bytes: int) -> None:
        """Raises UserError unless one more checkpoint fits on the disk."""
        free = shutil.disk_usage(self.path).free
        # Orbax writes next to the older ones; a tenth more for its metadata.
        if free < 1.1 * checkpoint_bytes:
            raise UserError(
                f"a checkpoint needs {checkpoint_bytes / 1e9:.1f} GB and the disk under "
                f"{self.path} has "
                f"{free / 1e9:.1f} GB left; make room or give another --run-dir"
            )

    def check_same(self, run: dict[str, Any], read: Callable[[str], Any] = json.loads) -> int:
        """Checks that `run` (as JSON) may go on from the checkpoints that are here.

        Args:
          run: what would train.
          read: text of run.json -> JSON, as it would be written now if it is of an older version.

        Returns:
          The steps that the run had until now, on which its rates depend.

        Raises:
          UserError: it differs from run.json in more than `FREE`; every difference is named.
        """
        try:
            before = read(self.run_json.read_text())
        except (OSError, ValueError):
            raise UserError(
                f"{self.path} has checkpoints and no readable run.json; give another --run-dir"
            ) from None
        found = [d for d in differences(before, run) if d.split(".")[0].split(" ")[0] not in FREE]
        if found:
            raise UserError(
                f"the run in {self.path} was started with other settings: {'; '.join(found[:5])}"
                f"{f' and {len(found) - 5} more' if len(found) > 5 else ''}. "
                "Give the same ones to go on, or another --run-dir"
            )
        return before["steps"] if isinstance(before.get("steps"), int) else run["steps"]

    def write(self, name: str, content: str | bytes) -> None:
        """Writes a file whole or not at all; of several processes the first does."""
        if first():
            with whole_file(self.path / name) as draft:
                draft.write_bytes(content.encode() if isinstance(content, str) else content)

    def write_origin(
        self, files: dict[str, bytes], more: Mapping[str, bytes | None] | None = None
    ) -> None:
        """Writes what a run begins with in the place of what an earlier try left.

        Args:
          files: the tokenizer's files by name.
          more: others; those that are None are removed.
        """
        if not first():
            return
        for name, content in (more or {}).items():
            if content is None:
                (self.path / name).unlink(missing_ok=True)
            else:
                self.write(name, content)
        if self.run_json.exists():
            for name in files_of(self.path).keys() - files.keys():
                (self.path / name).unlink(missing_ok=True)
        for name, content in files.items():
            self.write(name, content)

    def tokenizer_digest(self) -> str:
        """SHA-256 of the tokenizer's files; ids mean nothing under another tokenizer."""
        files = files_of(self.path)
        if len(files) == 1:
            return hashlib.sha256(*files.values()).hexdigest()
        each = {name: hashlib.sha256(data).hexdigest() for name, data in files.items()}
        return hashlib.sha256(json.dumps(each, sort_keys=True).encode()).hexdigest()


def _unwritable(path: Path, error: OSError) -> UserError:
    reason = error.strerror or type(error).__name__
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return UserError(
            f"the disk under {path} cannot be written ({reason}); give another --run-dir or make "
            "room"
        )
    return UserError(f"{path} cannot be made or written ({reason}); give another --run-dir")
