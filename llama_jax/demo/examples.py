"""A few test pictures with questions, the true answers and the model's."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from llama_jax.data import Questions, Stream, images
from llama_jax.data.builders.shapes import answer_type
from llama_jax.data.images import light
from llama_jax.data.rows import get
from llama_jax.errors import UserError
from llama_jax.evals.answer import Answer, ask
from llama_jax.evals.base import held_out
from llama_jax.train.load import Trained

KINDS = ("color", "shape", "yes/no")  # one after the other, so that every kind of question is seen


@dataclass(frozen=True)
class Example:
    """A picture, uint8 [Y,X,3], with a question, its true answer, and what the model says."""

    image: np.ndarray
    question: str
    truth: str
    answer: Answer

    @property
    def right(self) -> bool:
        """Whether the model's answer is the true one."""
        return self.answer.text == self.truth


def examples(trained: Trained, count: int = 12, seed: int = 0) -> list[Example]:
    """Draws pictures from the held-out data, one question each, and has them answered.

    Raises:
      UserError: the run has no stream of questions.
    """
    streams = [s for s in trained.run.data.values() if isinstance(s.task, Questions)]
    if not streams:
        raise UserError(f"run {trained.run.name!r} has no questions, only {[*trained.run.data]}")
    drawn = _draw(streams[0], count, np.random.default_rng(seed))
    said = ask(trained, [image for image, _, _ in drawn], [question for _, question, _ in drawn])
    return [Example(*row, answer) for row, answer in zip(drawn, said, strict=True)]


def _draw(stream: Stream, count: int, rng: np.random.Generator) -> list[tuple[Any, str, str]]:
    task: Any = stream.task
    rows = held_out(stream)[0].source.open()
    drawn = []
    for index in rng.permutation(len(rows)):
        texts = light(rows, int(index))
        asked, told = get(texts, task.questions), get(texts, task.answers)
        pairs = [(asked, told)] if isinstance(asked, str) else list(zip(asked, told, strict=True))
        kind = KINDS[len(drawn) % len(KINDS)]
        of_kind = [pair for pair in pairs if answer_type(pair[1]) == kind] or pairs
        if not of_kind:
            continue
        question, truth = of_kind[rng.integers(len(of_kind))]
        image = images.decode(get(rows[int(index)], task.image), task.size)
        drawn.append((image, question.strip(), truth.strip()))
        if len(drawn) == count:
            break
    return drawn
