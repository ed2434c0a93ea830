"""What a user should know of a run's learning rates before its first step."""

import math
from collections.abc import Iterator

import numpy as np

from llama_jax.config import Run

NOTICED = 0.01  # a rate that is so much off, as a share, is said


def rates_said(run: Run, start: int, before: int) -> Iterator[str]:
    """Yields a line for each surprise of the rates.

    Args:
      run: the run.
      start: steps that are done.
      before: steps that the run had until now.
    """
    warmup = getattr(run.optimizer.schedule, "warmup", 0)  # a user's own may have none
    begin = getattr(run.optimizer.schedule, "begin", 0)
    if 0 < run.steps <= warmup - begin:
        most = _rate(run, run.steps, run.steps - 1)
        yield (
            f"the warmup of {warmup} steps does not end within the {run.steps} steps of the run: "
            f"the rate reaches {most:.3g}, not {run.optimizer.rate:.3g}; try "
            f"--optimizer.schedule.warmup {max(1, run.steps // 10)}"
        )
    if start and before != run.steps:
        old, new = _rate(run, before, start), _rate(run, run.steps, start)
        if not math.isclose(old, new, rel_tol=NOTICED):
            yield (
                f"the run had {before} steps and has {run.steps}, over which its rates are spread: "
                f"the next is {new:.3g} where it would have been {old:.3g}; a run to be prolonged "
                "without a jump has --optimizer.schedule wsd or constant from its begin"
            )


def _rate(run: Run, steps: int, step: int) -> float:
    """The rate after so many steps of a run of `steps`."""
    return np.asarray(run.optimizer.rate_at(steps)(step)).item()
