"""Which evaluations a run calls for, and the table of their results."""

import json as jsonlib
from pathlib import Path
from typing import Any

from llama_jax.data import Questions
from llama_jax.errors import UserError
from llama_jax.evals.base import Eval, Row
from llama_jax.evals.text import PREDICTED, ExactMatch, Scores
from llama_jax.evals.vision import Matching, Retrieval, Vqa
from llama_jax.objectives import ITC, ITM, Caption, CausalLM, Seq2Seq, SigmoidITC
from llama_jax.train.load import Trained, load


def run_eval(run_dir: str | Path, json: bool = False, limit: int | None = None) -> list[Row]:
    """Evaluates the newest checkpoint of a run on held-out data and prints the table.

    Args:
      run_dir: where it was trained.
      json: print one JSON object instead.
      limit: about so many rows of text for each evaluation; None for all.

    Returns:
      The rows of the table.

    Raises:
      UserError: no run or no checkpoint there, or nothing in it that can be evaluated.
    """
    trained = load(run_dir)
    rows = evaluate(trained, limit)
    if json:
        print(jsonlib.dumps(as_json(rows) | {"step": trained.step}, indent=2))
    else:
        show(rows, f"{run_dir}, step {trained.step}")
    return rows


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


def evaluations(run: Any, limit: int | None = None) -> list[Eval]:
    """Chooses by objective and task, and adds those that the run has itself."""
    found: list[Eval] = []
    for name, objective in run.objectives.items():
        on = objective.on
        match objective:
            case _ if type(objective) in PREDICTED:
                found.append(Scores(on, on, limit=limit))
            case ITC() | SigmoidITC():
                found.append(Retrieval("retrieval", on, limit=limit, pair=objective.pair))
            case ITM():
                found.append(Matching(name, on, limit=limit, pair=objective.pair))
            case Caption():
                found.append(ExactMatch(name, on, limit=limit, only=objective.source))
            case Seq2Seq() if not isinstance(objective, CausalLM):
                kind = Vqa if isinstance(run.data[on].task, Questions) else ExactMatch
                found.append(kind(name, on, limit=limit))
    found += [one for one in run.evaluations.values() if isinstance(one, Eval)]
    return list(dict.fromkeys(found))  # MLM and NSP share one pass over their stream


def as_json(rows: list[Row]) -> dict[str, Any]:
    """{"metrics": {name: {"value", "baseline", "baseline_name", "count", "data"}}}."""
    return {
        "metrics": {row.name: {k: v for k, v in vars(row).items() if k != "name"} for row in rows}
    }


def show(rows: list[Row], title: str) -> None:
    """Prints the table."""
    from rich.console import Console
    from rich.table import Table

    table = Table(title=title, title_justify="left")
    for heading in ("", "model", "baseline", "the baseline is", "of", "data"):
        right = heading in ("model", "baseline", "of")
        table.add_column(heading, justify="right" if right else "left")
    for row in rows:
        table.add_row(
            row.name.replace("_", " "),
            written(row.name, row.value),
            written(row.name, row.baseline),
            row.baseline_name,
            f"{row.count:,}",
            row.data,
        )
    console = Console()
    # A file or a pipe has no width; a line of the table should stay one line there.
    (console if console.is_terminal else Console(width=120)).print(table)


def written(name: str, value: float) -> str:
    """A share in per cent, a perplexity as it is."""
    return f"{value:.1f}" if name.endswith("perplexity") else f"{100 * value:.1f} %"
