import io
import itertools

import pytest
from rich.console import Console

from llama_jax.train.console import duration, progress

NOTE = "loss 3.142  examples_per_second 123.4  tokens_per_second 12,345  mfu 0.4123"


def drawn(width: int, steps: int = 1000) -> str:
    """The line of a task that is half done, on a terminal of a width."""
    clock = itertools.count()
    console = Console(file=io.StringIO(), width=width, force_terminal=True, color_system=None)
    line = progress(console)
    line.get_time = lambda: float(next(clock))
    task = line.add_task("", total=steps, completed=0, note="compiling")
    for done in range(0, steps // 2 + 1, steps // 20):
        line.update(task, completed=done, note=NOTE)
    console.print(line.get_renderable())
    return console.file.getvalue()


@pytest.mark.parametrize("width", [40, 60])
def test_a_narrow_terminal_keeps_bar_step_and_time_left(width):
    [line] = drawn(width).splitlines()
    assert line.startswith("━━━━") and " 500/1000 " in line and "loss" in line
    assert len(line) <= width and line.endswith("…")
    left = line.split("500/1000 ")[1].split()[0]
    assert left.count(":") == 2 and left.replace(":", "").isdigit()


def test_a_narrow_terminal_shortens_the_bar_of_many_steps_too():
    [line] = drawn(40, steps=100_000).splitlines()
    assert line.startswith("━━") and " 50000/100000 " in line and len(line) <= 40


def test_a_wide_terminal_shows_all():
    [line] = drawn(140).splitlines()
    assert line.startswith("━" * 11) and NOTE in line


def test_durations_are_read_as_people_write_them():
    assert [duration(s) for s in (5, 85, 3700)] == ["0:05", "1:25", "1:01:40"]
