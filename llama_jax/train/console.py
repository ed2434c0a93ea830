"""What a run shows on standard error: a progress bar on a terminal, else plain lines."""

import sys
from collections.abc import Mapping
from typing import Any


class Console:
    """Progress for people.

    Args:
      steps: steps of the whole run.
      show: anything at all.
    """

    def __init__(self, steps: int, show: bool):
        self._steps = steps
        self._show = show
        self._bar: Any = None

    def start(self, step: int) -> None:
        """Draws the bar, if this is a terminal."""
        if self._show and sys.stderr.isatty() and step < self._steps:
            self._bar = _bar(step, self._steps)

    def metrics(self, step: int, values: Mapping[str, float | None]) -> None:
        """Shows the most telling of a step's metrics."""
        line = "  ".join(f"{name} {short(values[name])}" for name in _shown(values))
        if self._bar is not None:
            self._bar.update(0, completed=step, note=line)
        elif self._show:
            pace = values["seconds_per_step"]  # None until a step was measured
            left = f"  left {duration((self._steps - step) * pace)}" if pace else ""
            print(f"step {step}/{self._steps}  {line}{left}", file=sys.stderr, flush=True)

    def say(self, text: str) -> None:
        """A line for people."""
        if self._bar is not None:
            self._bar.console.print(text, markup=False, highlight=False)
        elif self._show:
            print(text, file=sys.stderr, flush=True)

    def close(self) -> None:
        """Gives the terminal back."""
        if self._bar is not None:
            self._bar.stop()


def _shown(values: Mapping[str, float | None]) -> list[str]:
    parts = [name for name in values if name.endswith("/loss")]
    speeds = [name for name in ("examples_per_second", "tokens_per_second") if values.get(name)]
    return ["loss", *(parts if len(parts) > 1 else []), *speeds, "mfu"]


def short(value: float | None) -> str:
    """12345.6 -> "12,346", 0.123456 -> "0.1235", None -> "n/a"."""
    if value is None:
        return "n/a"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def duration(seconds: float) -> str:
    """85 -> "1:25"."""
    minutes, seconds = divmod(round(max(seconds, 0)), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"


def _bar(start: int, steps: int):
    from rich.console import Console

    bar = progress(Console(stderr=True))
    bar.add_task("", total=steps, completed=start, note="compiling")
    bar.start()
    return bar


def progress(console: Any) -> Any:
    """The line of a running task: its bar, steps, time left and, as far as it fits, its note.

    Args:
      console: rich's; where it is narrow, the note and then the bar are made shorter.
    """
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        ProgressColumn,
        TimeRemainingColumn,
    )
    from rich.table import Column
    from rich.text import Text

    class Note(ProgressColumn):
        """What the task says, cut where the line ends."""

        def render(self, task: Any) -> Text:
            """The note of a task, cut where the line ends."""
            return Text(task.fields["note"], no_wrap=True, overflow="ellipsis")

    # rich makes columns narrower that may wrap, the widest first.
    return Progress(
        BarColumn(bar_width=None, table_column=Column(max_width=24)),
        MofNCompleteColumn(table_column=Column(no_wrap=True)),
        TimeRemainingColumn(elapsed_when_finished=True, table_column=Column(no_wrap=True)),
        Note(),
        console=console,
    )
