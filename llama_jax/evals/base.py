"""What all evaluations share: a row of the table, held-out data, and what a baseline may know."""

import dataclasses
import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from llama_jax.checked import checked
from llama_jax.data import Loader, Stream, one_pass
from llama_jax.data.splits import of_split
from llama_jax.errors import UserError, nearest
from llama_jax.evals.bootstrap import Figure
from llama_jax.limits import check_limits
from llama_jax.text.vocabulary import Vocabulary
from llama_jax.train.load import Trained


@dataclass(frozen=True)
class Row:
    """One figure beside what needs no model.

    Attributes:
      name: e.g. "vqa_accuracy"; the key in JSON.
      value: a share from 0 to 1, or a perplexity.
      baseline: the same figure of the trivial method.
      baseline_name: what the trivial method is.
      count: how many examples (questions, masked tokens, pictures) were judged.
      data: which data they are from.
      low: where the 95 % interval of the value begins (evals/bootstrap.py), or None without one.
      high: where it ends.
      strong: the same figure of a simple method that is hard to beat, or None without one.
      strong_name: what that method is.
      strong_low: where its 95 % interval begins.
      strong_high: where it ends.
    """

    name: str
    value: float
    baseline: float
    baseline_name: str
    count: int = 0
    data: str = ""
    low: float | None = None
    high: float | None = None
    strong: float | None = None
    strong_name: str = ""
    strong_low: float | None = None
    strong_high: float | None = None

    @classmethod
    def of(
        cls,
        name: str,
        figure: tuple[float, float | None, float | None],
        baseline: float,
        baseline_name: str,
        count: int,
        data: str,
    ) -> "Row":
        """A row of a value with the ends of its interval, if it has one."""
        value, low, high = figure
        return cls(name, value, baseline, baseline_name, count, data, low, high)

    def beside(self, strong: Figure, strong_name: str) -> "Row":
        """The same beside a strong method."""
        value, low, high = strong
        return dataclasses.replace(
            self, strong=value, strong_name=strong_name, strong_low=low, strong_high=high
        )


@checked
class Eval:
    """An evaluation of one stream; also a value of `Run.evaluations`.

    Attributes:
      name: begins the names of its rows.
      on: the stream whose source and task are used, on the held-out split.
      every: steps between evaluations while training; 0 leaves it to `Run.eval_every`.
      limit: about so many rows of text, in the order of the data; None for all.
      batch: rows at a time.
    """

    name: str
    on: str
    every: int = 0
    limit: int | None = None
    batch: int = 256

    def __post_init__(self):
        check_limits(self, "every", "limit", "batch")

    def rows(self, trained: Trained) -> list[Row]:
        """The rows of the table."""
        raise NotImplementedError

    def __call__(
        self, model: Any, params: Any, tokenizer: Vocabulary, run: Any
    ) -> dict[str, float]:
        """The values by name, as the training loop wants them."""
        rows = self.rows(Trained(run, model, params, tokenizer, step=0))
        return {row.name: row.value for row in rows}

    def stream(self, trained: Trained) -> Stream:
        """The training stream.

        Raises:
          UserError: the run has no such stream.
        """
        streams = trained.run.data
        if self.on not in streams:
            raise UserError(
                f"evaluation {self.name!r} reads stream {self.on!r}; the run has "
                f"{', '.join(streams)}{nearest(self.on, streams)}"
            )
        return streams[self.on]

    def batches(self, stream: Stream, tokenizer: Vocabulary) -> Iterator[dict[str, np.ndarray]]:
        """One pass, up to `limit` rows."""
        size = whole_batch(stream, self.batch)
        count = None if self.limit is None else -(-self.limit // size)
        return itertools.islice(one_pass(stream, tokenizer, size), count)


def held_out(stream: Stream) -> tuple[Stream, str]:
    """The same stream over held-out data, whole, and what to call that data.

    What the stream itself holds out comes first, then the test split of its source: a TFDS set
    without "test" gives "validation". Local files have no splits: they are the training
    data again, and the name says so.
    """
    if (measured := stream.measured) is not None:
        return measured, measured.source.open().name
    for split in ("test", "validation"):
        there = of_split(stream.source, split)
        if there is not None:
            try:
                name = there.open().name
            except UserError:
                continue
            return dataclasses.replace(stream, source=there, fraction=1.0), name
    return stream, f"{stream.source.open().name} (training data)"


def unmasked(stream: Stream) -> Stream:
    """The same stream with whole texts, if its task hides some tokens."""
    if getattr(stream.task, "mlm", None) is None:
        return stream
    task: Any = stream.task
    return dataclasses.replace(stream, task=dataclasses.replace(task, mlm=None))


def training_sample(stream: Stream, tokenizer: Vocabulary, rows: int) -> Iterator[dict[str, Any]]:
    """About so many shuffled rows of the training data: what a baseline may know.

    Of data packed ahead no more than all: to count them again would tell nothing.
    """
    stream = dataclasses.replace(stream, batch=whole_batch(stream, 256))
    loader = Loader({"sample": stream}, tokenizer)
    try:
        for _ in range(-(-min(rows, loader.packed_rows("sample") or rows) // stream.batch)):
            yield next(loader)["sample"]
    finally:
        loader.close()


def whole_batch(stream: Stream, rows: int) -> int:
    """At most `rows` (but at least one example) in whole examples.

    Questions share a picture, or pictures a question.
    """
    each = getattr(stream.task, "per_image", getattr(stream.task, "per_text", 1))
    return max(each, rows // each * each)
