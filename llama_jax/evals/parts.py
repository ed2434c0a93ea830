"""What the tasks of a stream are judged on: their test rows, by which metrics, beside what."""

import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from llama_jax import tasks
from llama_jax.data import Seq2Seq, Stream, Tfds, Union
from llama_jax.data.rows import Source, get
from llama_jax.evals.base import held_out
from llama_jax.tasks.base import Task


@dataclass(frozen=True)
class Example:
    """A row as a task has it.

    Attributes:
      source: what is asked.
      target: what is right.
      told: the instruction in front of it, or "".
      group: value of the field by which figures are given apart, or "".
    """

    source: str
    target: str
    told: str
    group: str = ""


@dataclass(frozen=True)
class Part:
    """One task's part of a stream, and what it is judged on.

    Attributes:
      name: begins the names of its rows.
      train: the training rows' source.
      test: the test rows' source.
      data: what to call these.
      metrics: names of metrics.
      baselines: names of baselines.
      by: the field by which figures are given apart, or None.
    """

    name: str
    train: Source
    test: Source
    data: str
    metrics: Sequence[str] = ("exact",)
    baselines: Sequence[str] = ("nearest",)
    by: str | None = None


def known_task(source: Any, task: Any) -> Task | None:
    """The task that a stream's source and task are of, or None."""
    if not isinstance(source, Tfds) or (task.source, task.target) != ("source", "target"):
        return None
    every = map(tasks.get, tasks.NAMES)
    return next((one for one in every if one.source.name == source.name), None)


def is_of_tasks(stream: Stream) -> bool:
    """Whether a stream is of texts that `Tasks` judges: a known task, or several parts."""
    if not isinstance(stream.task, Seq2Seq):
        return False
    return isinstance(stream.source, Union) or known_task(stream.source, stream.task) is not None


def parts_of(stream: Stream) -> Iterator[Part]:
    """The parts of a stream, one for each test split of its tasks.

    What no task knows is judged by exact match, beside the nearest neighbour.
    """
    source: Any = stream.source
    parts: dict[str, Any] = source.parts() if isinstance(source, Union) else {"": source}
    for name, part in parts.items():
        task = known_task(part, stream.task)
        if task is None:
            there, data = held_out(dataclasses.replace(stream, source=part))
            yield Part(name or "text", part, there.source, data)
            continue
        for split in task.tests:
            extra = "" if split == task.tests[0] else f"_{split}"
            test = dataclasses.replace(part, split=split)
            yield Part(
                f"{name or task.name}{extra}",
                part,
                test,
                test.open().name,
                task.metrics,
                task.baselines,
                task.by,
            )


def examples(source: Source, task: Seq2Seq, by: str | None = None) -> list[Example]:
    """The rows of a source that have a source and a target, in its order."""
    rows = source.open()
    found = []
    for i in range(len(rows)):
        row = rows[i]
        told = get(row, task.instruction) if task.instruction else ""
        group = str(get(row, by)) if by else ""
        one = Example(get(row, task.source), get(row, task.target).strip(), told, group)
        if one.source.strip() and one.target:
            found.append(one)
    return found
