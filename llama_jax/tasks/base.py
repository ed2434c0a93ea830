"""A task as a value: where its texts are from, what is said in front of them, who judges them.

To add one, write a file here that declares `TASK`. Its rows have `source`, `target` and `task`, the
instruction; a model reads "task: source" and writes the target.
"""

import dataclasses

from llama_jax.checked import checked
from llama_jax.data.tfds import Tfds
from llama_jax.errors import UserError, positive

TEXTS, ARTICLES = "texts", "articles"  # streams of a mixture: short ones, and long ones


@checked
class Task:
    """Texts with answers.

    Attributes:
      name: what its file is called, and its part in a `Union`.
      says: what it is, in one line.
      source: the training split.
      instructions: all that stands in front of its texts, such as "translate to German".
      example: what a user may ask, such as "translate to German: twelve".
      metrics: names of what its answers are measured with, the first one the most telling.
      baselines: names of what the same is measured of, which learned no weights.
      tests: the splits to measure on.
      by: the field of a row by which figures are given apart too, such as "language"; or None.
      stream: the stream of a mixture that it goes into, with others of about its length.
      length: tokens that the encoder reads.
      answer_length: tokens that the decoder writes at most.
      weight: share of the rows of a mixture, beside the weights of the others.
      words: the part of the training split that a tokenizer learns from, where all of it would
        teach the wrong words; None for all.
    """

    name: str
    says: str
    source: Tfds
    instructions: tuple[str, ...]
    example: str
    metrics: tuple[str, ...]
    baselines: tuple[str, ...]
    tests: tuple[str, ...] = ("test",)
    by: str | None = None
    stream: str = TEXTS
    length: int = 64
    answer_length: int = 64
    weight: float = 1.0
    words: str | None = None

    def __post_init__(self) -> None:
        """Checks the values."""
        positive(self, "length", "answer_length")
        for field in ("instructions", "metrics", "baselines", "tests"):
            if not getattr(self, field):
                raise UserError(f"{field}=() of task {self.name!r}; expected one at least")
        if not self.weight > 0:
            raise UserError(f"weight={self.weight} of task {self.name!r}; expected more than 0")
        if not self.example.startswith(tuple(f"{told}: " for told in self.instructions)):
            raise UserError(
                f"example={self.example!r} of task {self.name!r}; expected one that begins with an "
                f"instruction, such as {self.instructions[0] + ': ...'!r}"
            )

    def tested(self) -> dict[str, Tfds]:
        """The source of each split to measure on."""
        return {split: dataclasses.replace(self.source, split=split) for split in self.tests}

    def corpus(self) -> Tfds:
        """What a tokenizer learns from."""
        return dataclasses.replace(self.source, split=self.words or self.source.split)

    def knows(self, text: str) -> bool:
        """Whether a text begins with one of the instructions."""
        return text.startswith(tuple(f"{told}: " for told in self.instructions))
