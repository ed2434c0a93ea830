"""A choice of tasks as streams: short texts in one, articles in another, each mixed by weight."""

import math
from collections.abc import Mapping, Sequence
from types import MappingProxyType

from llama_jax import tasks
from llama_jax.checked import checked_call
from llama_jax.data.loader import Stream
from llama_jax.data.sequences import Seq2Seq
from llama_jax.data.tfds import Tfds
from llama_jax.data.union import Union
from llama_jax.errors import UserError, nearest
from llama_jax.tasks.base import Task

UNIT = 4  # rows of a stream are a multiple of it, so that processes can share them


@checked_call
def mixture(
    names: Sequence[str], batch: int, weights: Mapping[str, float] = MappingProxyType({})
) -> dict[str, Stream]:
    """The streams of some tasks, by name: "texts", "articles", as far as these tasks need them.

    Rows are as long as the longest task of their stream needs. A stream has a part for each task,
    by the task's name.

    Args:
      names: the tasks.
      batch: about so many rows of all streams a step.
      weights: share of the rows by task; those not named have the weight that the task declares.

    Raises:
      UserError: no task, one that does not exist or comes twice, a weight of another one, or too
        few rows for all streams.
    """
    chosen = {name: tasks.get(name) for name in names}
    if not chosen or len(chosen) != len(names):
        raise UserError(
            f"a mixture of {', '.join(names) or 'no tasks'}; expected different tasks, of "
            f"{', '.join(tasks.NAMES)}"
        )
    for name, weight in weights.items():
        if name not in chosen:
            raise UserError(
                f"weights name {name!r}, and the tasks of the mixture are {', '.join(chosen)}"
                f"{nearest(name, chosen)}"
            )
        if not 0 < weight < math.inf:
            raise UserError(f"weights: {name}={weight}; expected a number above 0, such as 1")
    shares = {name: float(weights.get(name, task.weight)) for name, task in chosen.items()}
    groups: dict[str, list[Task]] = {}
    for task in chosen.values():
        groups.setdefault(task.stream, []).append(task)
    if batch < UNIT * len(groups):
        raise UserError(
            f"batch={batch} for the streams {', '.join(groups)}; expected {UNIT} rows of each or "
            "more"
        )
    whole = sum(shares.values())
    return {
        name: _stream(group, batch * sum(shares[task.name] for task in group) / whole, shares)
        for name, group in groups.items()
    }


@checked_call
def corpus(names: Sequence[str]) -> tuple[Tfds, ...]:
    """What a tokenizer for some tasks learns from.

    Raises:
      UserError: a task that does not exist.
    """
    return tuple(tasks.get(name).corpus() for name in names)


def _stream(group: Sequence[Task], rows: float, shares: Mapping[str, float]) -> Stream:
    """The stream of tasks whose texts are of about one length."""
    source = Union(
        {task.name: task.source for task in group}, {task.name: shares[task.name] for task in group}
    )
    task = Seq2Seq(
        length=max(task.length for task in group),
        answer_length=max(task.answer_length for task in group),
        instruction="task",
    )
    return Stream(source, task, max(UNIT, round(rows / UNIT) * UNIT))
