"""Tasks in text: what a model writes to each test row, judged as the task says.

A stream may mix several tasks; each is judged on its own test rows, by its own metrics and beside
its own baselines, whole and by language or module.
"""

import functools
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from llama_jax.checked import checked
from llama_jax.data import Seq2Seq, Stream
from llama_jax.data.fields import framed, text_batch
from llama_jax.data.sequences import instructed
from llama_jax.errors import UserError
from llama_jax.evals.base import Eval, Row
from llama_jax.evals.baselines import BASELINES, said
from llama_jax.evals.bootstrap import SEED
from llama_jax.evals.inputs import encode
from llama_jax.evals.metrics import figure
from llama_jax.evals.parts import Example, Part, examples, parts_of
from llama_jax.evals.text import answer_length, answers
from llama_jax.generate.beam import Beam
from llama_jax.text.roles import framing
from llama_jax.train.load import Trained

USUAL = "most_frequent"  # the baseline that every row has


@checked
class Tasks(Eval):
    """Texts written to the test rows of each task in a stream.

    A row of the table has the model's figure, that of the training data's most frequent text, and
    that of the best of the task's other baselines. Baselines learn from the training rows with the
    same instruction, so that a neighbour is a text in the language that is asked for.

    Attributes:
      beams: beams of the search that writes; 1 is greedy decoding.
    """

    beams: int = 1

    def __post_init__(self):
        super().__post_init__()
        Beam(self.beams)  # says what is wrong with it

    def rows(self, trained: Trained) -> list[Row]:
        """For every test each metric, whole and by group."""
        stream, read = self.stream(trained), functools.cache(examples)
        return [
            row for part in parts_of(stream) for row in self._judged(trained, stream, part, read)
        ]

    def _judged(self, trained: Trained, stream: Stream, part: Part, read: Any) -> list[Row]:
        task: Any = stream.task
        known, asked = read(part.train, task), some(read(part.test, task, part.by), self.limit)
        if not (known and asked):
            raise UserError(f"{part.data} has no row with a source and a target to judge")
        texts = {"model": self._written(trained, stream, asked)}
        for name in dict.fromkeys((USUAL, *part.baselines)):
            texts[name] = by_instruction(name, known, asked)
        right = [one.target for one in asked]
        group_N = np.array([one.group for one in asked])
        groups = sorted(set(group_N.tolist()))
        return [
            row
            for metric in part.metrics
            for row in _rows(metric, part, texts, right, group_N, groups if len(groups) > 1 else ())
        ]

    def _written(self, trained: Trained, stream: Stream, asked: Sequence[Example]) -> list[str]:
        """The model's text to each example; short ones first, so that batches end together."""
        task: Any = stream.task
        order = np.argsort([len(one.source) for one in asked], kind="stable")
        sources = [asked[i] for i in order]
        inputs = encode(trained, _batches(trained, task, sources, self.batch), self.batch)
        length, beam = answer_length(stream, trained), Beam(self.beams)
        made = answers(trained, inputs, inputs.index, length, self.batch, beam)
        found = [""] * len(asked)
        for place, text in zip(order.tolist(), made, strict=True):
            found[place] = text
        return found


def some(rows: Sequence[Example], limit: int | None) -> Sequence[Example]:
    """So many rows in their order, drawn from all, for data sets come language by language."""
    if limit is None or limit >= len(rows):
        return rows
    chosen = np.random.default_rng(SEED).choice(len(rows), limit, replace=False)
    return [rows[i] for i in sorted(chosen.tolist())]


def by_instruction(name: str, known: Sequence[Example], asked: Sequence[Example]) -> list[str]:
    """What a baseline says to each example, of the training rows with the same instruction."""
    train, places = defaultdict(list), defaultdict(list)
    for one in known:
        train[one.told].append({"source": one.source, "target": one.target})
    for place, one in enumerate(asked):
        places[one.told].append(place)
    found = [""] * len(asked)
    for told, mine in places.items():  # without training rows of its own it learns from all
        rows = train[told] or [row for rows in train.values() for row in rows]
        texts = said(name, rows, [asked[place].source for place in mine])
        for place, text in zip(mine, texts, strict=True):
            found[place] = text
    return found


def _batches(
    trained: Trained, task: Seq2Seq, asked: Sequence[Example], size: int
) -> Iterator[dict[str, np.ndarray]]:
    """The encoder's fields, as the stream's task makes them."""
    tokenizer = framing(trained.tokenizer, "writing")
    prefix = tokenizer.encode(task.prefix) if task.prefix else []
    for begin in range(0, len(asked), size):
        rows = [
            framed(
                [*prefix, *tokenizer.encode(instructed(one.source, one.told))],
                tokenizer,
                task.length,
            )
            for one in asked[begin : begin + size]
        ]
        yield text_batch(rows, task.length) | {"row_valid": np.ones(len(rows), bool)}


def _rows(
    metric: str,
    part: Part,
    texts: Mapping[str, list[str]],
    right: list[str],
    group_N: np.ndarray,
    groups: Sequence[str],
) -> Iterator[Row]:
    """The rows of one metric: all examples, then each group."""
    everyone = np.arange(len(right))
    chosen = {"": everyone} | {f"_{one}": everyone[group_N == one] for one in groups}
    for suffix, at in chosen.items():
        figures = {
            who: figure(metric, [said[i] for i in at], [right[i] for i in at])
            for who, said in texts.items()
        }
        model, usual = figures.pop("model"), figures.pop(USUAL)
        name = f"{part.name}_{metric}{suffix}"
        row = Row.of(name, model, usual[0], BASELINES[USUAL].written, len(at), part.data)
        if figures:
            best = max(figures, key=lambda who: figures[who][0])
            row = row.beside(figures[best], BASELINES[best].written)
        yield row
