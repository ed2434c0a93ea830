"""`--profile 10:13`: a trace of these steps for XProf or TensorBoard's profile tab."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax

from llama_jax.checked import checked
from llama_jax.errors import UserError
from llama_jax.train.processes import first


@checked
class Profile:
    """The steps to trace, from `start` up to but not with `stop`."""

    start: int
    stop: int

    def __post_init__(self):
        if not 0 < self.start < self.stop:
            raise UserError(
                f"start={self.start}, stop={self.stop} of a profile: give the first step, from 1, "
                "and the one after the last, e.g. 10 and 13"
            )

    @classmethod
    def parse(cls, text: str) -> "Profile":
        """Reads "10:13".

        Raises:
          UserError: it is no such pair.
        """
        start, colon, stop = text.partition(":")
        if not (colon and start.isdigit() and stop.isdigit()) or not 0 < int(start) < int(stop):
            raise UserError(
                f"profile {text!r}: expected START:STOP, e.g. 10:13 for the steps 10, 11 and 12"
            )
        return cls(int(start), int(stop))


class Tracer:
    """Traces the steps of a profile into a directory; without a profile it does nothing."""

    def __init__(self, profile: Profile | None, place: Path, say: Callable[[str], None]):
        self._profile, self._place, self._say = profile, place, say
        self._on = self._written = False
        self._first = self._last = 0  # of the steps that this call did

    def before(self, step: int) -> None:
        """To be called before a step is dispatched."""
        self._first, self._last = self._first or step, step
        if self._profile and self._profile.start <= step < self._profile.stop and not self._on:
            jax.profiler.start_trace(str(self._place))
            self._on = True

    def after(self, step: int, done: Any) -> None:
        """To be called after; waits for the last step to be traced."""
        if self._on and self._profile and step + 1 >= self._profile.stop:
            jax.block_until_ready(done)
            self.close()

    def close(self) -> None:
        """Writes what was traced; if that is nothing, says so even to who wants no progress."""
        if self._on:
            jax.profiler.stop_trace()
            self._on, self._written = False, True
            self._say(f"profile in {self._place} (xprof {self._place})")
        elif self._profile and self._last and not self._written and first():
            print(
                f"no profile: steps {self._first} to {self._last} were done here, and "
                f"{self._profile.start}:{self._profile.stop} has none of them",
                file=sys.stderr,
            )
