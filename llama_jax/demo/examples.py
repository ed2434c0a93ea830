"""A few test pictures, or clips, with questions, the true answers and the model's."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from llama_jax.data import Questions, Stream, images
from llama_jax.data.builders.shapes import answer_type
from llama_jax.data.images import light
from llama_jax.data.rows import get
from llama_jax.errors import UserError
from llama_jax.evals.answer import PLURAL, Answer, ask
from llama_jax.evals.base import held_out
from llama_jax.evals.draw import LINE, WHITE
from llama_jax.train.load import Trained

KINDS = ("color", "shape", "yes/no")  # one after the other, so that every kind of question is seen


@dataclass(frozen=True)
class Example:
    """A picture, uint8 [Y,X,3], with a question, its true answer, and what the model says.

    Of a clip the picture is its frames, side by side.
    """

    image: np.ndarray
    question: str
    truth: str
    answer: Answer

    @property
    def right(self) -> bool:
        """Whether the model's answer is the true one."""
        return self.answer.text == self.truth


def examples(
    trained: Trained, count: int = 12, seed: int = 0, modality: str = "image"
) -> list[Example]:
    """Draws pictures or clips from the held-out data, one question each, and has them answered.

    Args:
      trained: a run that answers questions.
      count: how many.
      seed: decides which.
      modality: "image" or "video".

    Raises:
      UserError: the run has no stream of questions about such.
    """
    drawn = _draw(asking(trained, modality)[0], count, np.random.default_rng(seed))
    said = ask(
        trained, [{modality: seen} for seen, _, _ in drawn], [question for _, question, _ in drawn]
    )
    return [
        Example(beside(seen) if modality == "video" else seen, question, truth, answer)
        for (seen, question, truth), answer in zip(drawn, said, strict=True)
    ]


def asking(trained: Trained, modality: str) -> list[Stream]:
    """The streams of questions about pictures ("image") or clips ("video").

    Raises:
      UserError: the run has none.
    """
    found = [
        stream
        for stream in trained.run.data.values()
        if isinstance(stream.task, Questions) and images.stream_name(stream.task.frames) == modality
    ]
    if not found:
        raise UserError(
            f"run {trained.run.name!r} has no questions about {PLURAL[modality]}, only "
            f"{[*trained.run.data]}"
        )
    return found


def beside(video_TYXR: np.ndarray) -> np.ndarray:
    """The frames of a clip side by side, with lines between them: uint8 [Y,X,3]."""
    line = np.full_like(video_TYXR[0][:, :LINE], WHITE)
    parts = [part for frame in video_TYXR for part in (line, frame)]
    return np.concatenate(parts[1:], axis=1)


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
        file = get(rows[int(index)], task.image)
        seen = (
            images.frames(file, task.frames, task.size)
            if task.frames
            else images.decode(file, task.size)
        )
        drawn.append((seen, question.strip(), truth.strip()))
        if len(drawn) == count:
            break
    return drawn
