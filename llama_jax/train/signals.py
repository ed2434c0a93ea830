"""SIGTERM and SIGINT: the step is finished, the state is saved, `train` returns.

`llama-jax train` then exits with 128 and the signal's number.

Several processes must end after the same step, whichever of them was told to. jax's preemption
service hears SIGTERM in one of them and agrees with the others on a step that none has passed.
"""

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass

from jax.experimental.multihost_utils import reached_preemption_sync_point

from llama_jax.train.processes import several


@dataclass
class Stop:
    """Whether somebody asked the run to end, and how."""

    signal: str | None = None

    def after(self, step: int) -> bool:
        """Whether to end after this step; to be asked after every step, by all processes."""
        if several() and reached_preemption_sync_point(step):
            self.signal = self.signal or "SIGTERM"
            return True
        return not several() and self.signal is not None


@contextlib.contextmanager
def graceful() -> Iterator[Stop]:
    """Within the block the first SIGTERM or SIGINT only sets `Stop`; a second SIGINT exits at once.

    In a notebook the second ends the cell and leaves the kernel its variables. In a thread that is
    not the main one (a server's) signals stay as they are.
    """
    stop = Stop()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return

    notebook = "ipykernel" in sys.modules

    def handle(number, _frame):
        if stop.signal and number == signal.SIGINT:
            if notebook:
                raise KeyboardInterrupt
            # Not sys.exit: a hung computation would never get to raise it.
            os._exit(130)
        stop.signal = signal.Signals(number).name
        again = "interrupt again to end the cell" if notebook else "Ctrl-C again exits at once"
        os.write(2, f"\n{stop.signal}: finishing this step; {again}\n".encode())
        if several():
            os.kill(os.getpid(), signal.SIGTERM)

    # With several processes SIGTERM is the preemption service's.
    numbers = (signal.SIGINT,) if several() else (signal.SIGTERM, signal.SIGINT)
    before = {number: signal.signal(number, handle) for number in numbers}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
