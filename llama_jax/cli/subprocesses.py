"""Several processes on this machine, watched: none outlives the block or its time."""

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

# Seconds that the others have to end by themselves after one has failed: a process in a collective
# may learn of it from a heartbeat alone, which a rehearsal gives 10 s (`rehearse.HEARTBEAT`).
GRACE = 30
LAST_LINES = 15


@dataclass(frozen=True)
class Ended:
    """How a process ended.

    Attributes:
      status: exit status, negative for a signal; None if the time was up.
      said: the last lines that came.
    """

    status: int | None
    said: str


class Crew:
    """Running processes, each the head of a session of its own, with what they say in files."""

    def __init__(self, running: list[subprocess.Popen], logs: list[Path]):
        self.running = running
        self.logs = logs

    def wait(self, timeout: float) -> list[Ended]:
        """Waits for all; after a failure or the time-out those that still run are killed."""
        end = time.monotonic() + timeout
        while time.monotonic() < end:
            found = [one.poll() for one in self.running]
            if None not in found:
                break
            if any(found):
                end = min(end, time.monotonic() + GRACE)
            time.sleep(0.1)
        found = [one.poll() for one in self.running]
        self.kill()
        return [
            Ended(status, "\n".join(log.read_text(errors="replace").splitlines()[-LAST_LINES:]))
            for status, log in zip(found, self.logs, strict=True)
        ]

    def kill(self) -> None:
        """Ends every process and what it started; jax processes may not listen to SIGTERM."""
        for one in self.running:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(one.pid, signal.SIGKILL)
            one.wait()


@contextlib.contextmanager
def crew(commands: Sequence[tuple[Sequence[str], dict[str, str]]], logs: Path) -> Iterator[Crew]:
    """Starts commands, each with its environment; at the end of the block none is left.

    Args:
      commands: the words of each, and its whole environment.
      logs: a folder for what they say, `0.log`, `1.log`, ...
    """
    running: list[subprocess.Popen] = []
    files = [logs / f"{i}.log" for i in range(len(commands))]
    found = Crew(running, files)
    try:
        for (words, environment), log in zip(commands, files, strict=True):
            with log.open("wb") as out:
                running.append(
                    subprocess.Popen(
                        words,
                        env=environment,
                        stdin=subprocess.DEVNULL,
                        stdout=out,
                        stderr=subprocess.STDOUT,
                        start_new_session=True,
                    )
                )
        yield found
    finally:
        found.kill()
