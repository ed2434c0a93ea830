"""Ends that a user can cause: a mistake, or a signal.

A mistake is one line that says what came, what was expected, what to try.
"""

import difflib
import signal
from collections.abc import Iterable
from typing import Any


class UserError(ValueError):
    """A mistake that the user can mend; the command line prints its one line and exits with 2."""


def nearest(word: str, choices: Iterable[str]) -> str:
    """What a message ends with: ". Did you mean 'x'?", or "" if no choice is close to `word`."""
    close = difflib.get_close_matches(word, list(choices), n=1, cutoff=0.5)
    return f". Did you mean {close[0]!r}?" if close else ""


def positive(config: Any, *names: str) -> None:
    """Checks fields of a config that are numbers; their type is checked where it is read.

    Raises:
      UserError: one is below 1.
    """
    for name in names:
        if isinstance(value := getattr(config, name), int | float) and value < 1:
            raise UserError(f"{name}={value}: give 1 or more")


class CodeError(UserError):
    """An error in the user's own code; its message has three lines, as a short traceback."""


class FormatError(UserError):
    """A file that is not what it should be: the message names it and what is wrong."""


class Stopped(KeyboardInterrupt):
    """A signal told training to end; what it had done is saved.

    Args:
      name: what the signal is called, e.g. "SIGTERM".
    """

    def __init__(self, name: str):
        super().__init__(name)
        # As a shell says it of a process that a signal ended: 130 for SIGINT, 143 for SIGTERM.
        self.status = 128 + signal.Signals[name]
