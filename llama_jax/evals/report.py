"""Which evaluations a run calls for, and the table of their results."""

import dataclasses
import functools
import json as jsonlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

from llama_jax.checked import checked_call
from llama_jax.config import Run
from llama_jax.data import Questions
from llama_jax.errors import UserError, nearest
from llama_jax.evals.base import Eval, Row
from llama_jax.evals.combinations import Combinations
from llama_jax.evals.dialogues import Dialogues, are_dialogues
from llama_jax.evals.drawing import Drawings, Reconstructions
from llama_jax.evals.moving import Clips
from llama_jax.evals.parts import is_of_tasks
from llama_jax.evals.pixels import Pixels
from llama_jax.evals.replies import Answers
from llama_jax.evals.tasks import Tasks
from llama_jax.evals.text import ExactMatch, Scores
from llama_jax.evals.vision import Matching, Retrieval, Vqa
from llama_jax.train.continued import said
from llama_jax.train.load import Trained, load


@checked_call
def run_eval(
    run_dir: str | Path,
    json: bool = False,
    limit: int | None = None,
    step: int | Literal["best"] | None = None,
) -> list[Row]:
    """Evaluates a checkpoint of a run on held-out data and prints the table.

    Args:
      run_dir: where it was trained.
      json: print one JSON object instead.
      limit: about so many rows of text for each evaluation; None for all.
      step: which checkpoint, "best" for that of the run's `keep_best`; None for the newest.

    Returns:
      The rows of the table.

    Raises:
      UserError: no run or no checkpoint there, or nothing in it that can be evaluated.
    """
    trained = load(run_dir, step=step)
    rows = evaluate(trained, limit)
    if json:
        print(jsonlib.dumps(as_json(rows) | {"step": trained.step}, indent=2))
    else:
        show(rows, f"{run_dir}, step {trained.step}")
        for change in getattr(trained.run, "history", ()):
            print(said(change))
    return rows


@checked_call
def evaluate(trained: Trained, limit: int | None = None) -> list[Row]:
    """The rows of every evaluation that the run's objectives call for.

    Raises:
      UserError: there is none.
    """
    chosen = evaluations(trained.run, limit)
    if not chosen:
        names = [type(o).__name__ for o in trained.run.objectives.values()]
        raise UserError(f"there is no evaluation for the objectives {', '.join(names)}")
    return [row for evaluation in chosen for row in evaluation.rows(trained)]


@checked_call
def evaluations(run: Run, limit: int | None = None) -> list[Eval]:
    """The evaluations that the run's objectives name, and its own, each once.

    Args:
      run: the Run that was trained.
      limit: about so many rows of text for each; None for what each says.

    Raises:
      UserError: an objective names one that there is not.
    """
    found: list[Eval] = []
    for name, objective in run.objectives.items():
        named = objective.evaluation
        if named is None:
            continue
        if isinstance(named, str):
            if named not in BY_NAME:
                raise UserError(
                    f"{type(objective).__name__}.evaluation is {named!r}; expected a method, or "
                    f"one of {', '.join(BY_NAME)}{nearest(named, BY_NAME)}"
                )
            named = functools.partial(BY_NAME[named], objective)
        found.append(named(name, run))
    found += _combinations(run)
    if limit is not None:
        found = [dataclasses.replace(one, limit=limit) for one in found]
    found += [one for one in run.evaluations.values() if isinstance(one, Eval)]
    return list(dict.fromkeys(found))  # MLM and NSP share one pass over their stream


def _combinations(run: Run) -> list[Eval]:
    """All combinations of modalities, of a run that is asked about pictures and about clips."""
    asked: dict[bool, str] = {}
    for objective in run.objectives.values():
        task = getattr(run.data[objective.on], "task", None)
        if objective.evaluation == "texts" and isinstance(task, Questions):
            asked.setdefault(task.frames > 0, objective.on)
    both = len(asked) == 2
    return [Combinations("any", asked[False], clips=asked[True])] if both else []


def _scores(objective: Any, name: str, run: Any) -> Eval:
    del name, run
    return Scores(objective.on, objective.on)


def _texts(objective: Any, name: str, run: Any) -> Eval:
    stream = run.data[objective.on]
    if not isinstance(stream.task, Questions):
        return (Tasks if is_of_tasks(stream) else ExactMatch)(name, objective.on)
    if stream.task.frames:
        return Clips(name, objective.on)
    return (Dialogues if are_dialogues(stream.source.open()) else Vqa)(name, objective.on)


def _captions(objective: Any, name: str, run: Any) -> Eval:
    del run
    return ExactMatch(name, objective.on, only=objective.source)


def _retrieval(objective: Any, name: str, run: Any) -> Eval:
    del name, run
    return Retrieval("retrieval", objective.on, pair=objective.pair)


def _matching(objective: Any, name: str, run: Any) -> Eval:
    del run
    return Matching(name, objective.on, pair=objective.pair)


def _replies(objective: Any, name: str, run: Any) -> Eval:
    del run
    return Answers(name, objective.on)


def _pixels(objective: Any, name: str, run: Any) -> Eval:
    del run
    return Pixels(name, objective.on)


def _drawings(objective: Any, name: str, run: Any) -> Eval:
    del run
    return Drawings(name, objective.on)


def _reconstructions(objective: Any, name: str, run: Any) -> Eval:
    del run
    return Reconstructions(name, objective.on)


# What an objective may say in its field `evaluation`.
BY_NAME: dict[str, Callable[[Any, str, Any], Eval]] = {
    "scores": _scores,
    "texts": _texts,
    "captions": _captions,
    "retrieval": _retrieval,
    "matching": _matching,
    "replies": _replies,
    "pixels": _pixels,
    "drawings": _drawings,
    "reconstructions": _reconstructions,
}


STRONG, NOT_STRONG = ("strong", "that is"), ("strong_name", "")
HEADINGS = ("", "model", "baseline", "the baseline is", *STRONG, "of", "data")
WIDE = 200  # characters of a table with strong baselines


@checked_call
def as_json(rows: list[Row]) -> dict[str, Any]:
    """{"metrics": {name: {"value", "baseline", "baseline_name", "count", "data"}}}.

    Where there is an interval, "low" and "high" too; where there is a strong baseline, "strong",
    "strong_name", "strong_low" and "strong_high".
    """

    def told(row: Row) -> dict[str, Any]:
        fields = dataclasses.fields(row)[1:]
        return {
            field.name: value
            for field in fields
            if (value := getattr(row, field.name)) is not None and (field.name, value) != NOT_STRONG
        }

    return {"metrics": {row.name: told(row) for row in rows}}


@checked_call
def show(rows: list[Row], title: str) -> None:
    """Prints the table."""
    from rich.console import Console
    from rich.table import Table

    strong = any(row.strong is not None for row in rows)
    table = Table(title=title, title_justify="left")
    left = ("", "the baseline is", "that is", "data")
    for heading in HEADINGS:
        if strong or heading not in STRONG:
            table.add_column(heading, justify="left" if heading in left else "right")
    for row in rows:
        cells = [
            row.name.replace("_", " "),
            written(row.name, row.value, row.low, row.high),
            written(row.name, row.baseline),
            row.baseline_name,
        ]
        if strong and row.strong is not None:
            cells += [
                written(row.name, row.strong, row.strong_low, row.strong_high),
                row.strong_name,
            ]
        elif strong:
            cells += ["", ""]
        table.add_row(*cells, f"{row.count:,}", row.data)
    console = Console()
    # A file or a pipe has no width; a line of the table should stay one line there.
    (console if console.is_terminal else Console(width=WIDE if strong else 120)).print(table)


def written(name: str, value: float, low: float | None = None, high: float | None = None) -> str:
    """A share in per cent, else a number as it is: "98.3 % (97.9 to 98.6)" with its interval."""
    if name.endswith("_error"):  # of pixels, without an interval
        return f"{value:.3f}"
    if name.endswith("psnr"):
        share, unit = 1, " dB"
    else:
        share, unit = (1, "") if name.endswith("perplexity") else (100, " %")
    interval = "" if low is None or high is None else f" ({share * low:.1f} to {share * high:.1f})"
    return f"{share * value:.1f}{unit}{interval}"
