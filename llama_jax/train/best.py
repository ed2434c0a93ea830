"""The best step of a run, by a figure that one of its evaluations finds; its checkpoint is kept.

It is noted in best.json of the run directory: {"step": 400, "name": "val/lm_perplexity",
"value": 9.1}. Of figures whose name ends in "loss" or "perplexity" the lowest is the best, of all
others the highest.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from llama_jax.errors import UserError, nearest

NOTE = "best.json"
LOWEST = ("loss", "perplexity")


@dataclass(frozen=True)
class Best:
    """A step and its figure."""

    step: int
    name: str
    value: float

    @classmethod
    def read(cls, run_dir: Path) -> "Best | None":
        """The one that a run directory notes, or None."""
        try:
            return cls(**json.loads((run_dir / NOTE).read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError):
            return None

    def content(self) -> str:
        """What best.json holds."""
        return json.dumps(asdict(self)) + "\n"


def improved(
    name: str, step: int, found: Mapping[str, Mapping[str, float]], before: Best | None
) -> Best | None:
    """The step as the new best, or None: it is not, or the figure was not looked for.

    Args:
      name: "evaluation/figure".
      step: the steps done.
      found: figures by evaluation and name, of the evaluations that were due.
      before: the best until now.

    Raises:
      UserError: the evaluation does not find such a figure.
    """
    evaluation, _, figure = name.partition("/")
    if evaluation not in found:
        return None
    figures = found[evaluation]
    if figure not in figures:
        raise UserError(
            f"keep_best={name!r}: {evaluation} finds {', '.join(figures) or 'nothing'}"
            + nearest(figure, figures)
        )
    value = float(figures[figure])
    if not math.isfinite(value):
        return None
    if before is not None and before.name == name:
        lower = figure.endswith(LOWEST)
        if not (value < before.value if lower else value > before.value):
            return None
    return Best(step, name, value)
