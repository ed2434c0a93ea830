"""SIGTERM and SIGINT: the step is finished, the state is saved, the process exits with 0."""

import contextlib
import os
import signal
import threading
from collections.abc import Iterator
from dataclasses import dataclass


@dataclass
class Stop:
    """Whether somebody asked the run to end, and how."""

    signal: str | None = None

    def __bool__(self) -> bool:
        return self.signal is not None


@contextlib.contextmanager
def graceful() -> Iterator[Stop]:
    """Within the block the first SIGTERM or SIGINT only sets `Stop`; a second SIGINT exits at once.

    In a thread that is not the main one (a notebook's, a server's) signals stay as they are.
    """
    stop = Stop()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return

    def handle(number, _frame):
        if stop and number == signal.SIGINT:
            # Not sys.exit: a hung computation would never get to raise it.
            os._exit(130)
        stop.signal = signal.Signals(number).name
        os.write(2, f"\n{stop.signal}: finishing this step; Ctrl-C again exits at once\n".encode())

    before = {number: signal.signal(number, handle) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
