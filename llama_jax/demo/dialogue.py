"""A dialogue about a test picture: what was asked, what the model said, and what is true."""

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

import numpy as np

from llama_jax.data import images
from llama_jax.data.dialogue import before
from llama_jax.data.images import light
from llama_jax.data.rows import get
from llama_jax.demo.examples import asking
from llama_jax.demo.figures import png
from llama_jax.errors import UserError
from llama_jax.evals.base import held_out
from llama_jax.evals.dialogues import are_dialogues
from llama_jax.evals.talking import Talk
from llama_jax.train.load import Trained


@dataclass(frozen=True)
class Turn:
    """A question, the model's answer, and the true one."""

    question: str
    answer: str
    truth: str

    @property
    def right(self) -> bool:
        """Whether the model's answer is the true one."""
        return self.answer == self.truth


@dataclass(frozen=True)
class Dialogue:
    """A picture, uint8 [Y,X,3], and what was said about it."""

    image: np.ndarray
    turns: tuple[Turn, ...]


def dialogue(trained: Trained, seed: int = 0) -> Dialogue:
    """A dialogue of the held-out data, drawn by lot, in which the model gives the answers.

    Raises:
      UserError: the run was trained on none.
    """
    streams = [s for s in asking(trained, "image") if are_dialogues(s.source.open())]
    if not streams:
        raise UserError(f"run {trained.run.name!r} has no dialogues, only {[*trained.run.data]}")
    task: Any = streams[0].task
    rows = held_out(streams[0])[0].source.open()
    index = int(np.random.default_rng(seed).integers(len(rows)))
    row = light(rows, index)
    image = images.decode(get(rows[index], task.image), task.size)
    talk = Talk(trained)
    talk.look("image", image)
    # What the model says, and not what is true, stands in front of its next question.
    told = parted(get(row, task.questions), get(row, task.answers))
    return Dialogue(image, tuple(Turn(asked, talk.say(asked).text, true) for asked, true in told))


def parted(questions: Sequence[str], answers: Sequence[str]) -> list[tuple[str, str]]:
    """The turns of a dialogue, each question without the turns before it."""
    turns: list[tuple[str, str]] = []
    for whole, answer in zip(questions, answers, strict=True):
        turns.append((whole.strip().removeprefix(before(turns)), answer.strip()))
    return turns


def card(shown: Dialogue) -> str:
    """The figure of a dialogue, for the grid of report.html."""
    source = "data:image/png;base64," + base64.b64encode(png(shown.image)).decode()
    kind = "right" if all(turn.right for turn in shown.turns) else "wrong"
    said = "".join(map(_turn, shown.turns))
    return (
        f'<figure class="{kind}"><img src="{source}" alt="test picture">'
        f"<figcaption>{said}</figcaption></figure>"
    )


def _turn(turn: Turn) -> str:
    mark = "✓" if turn.right else "✗"
    true = "" if turn.right else f"<p>true answer: <b>{escape(turn.truth)}</b></p>"
    return f"<p>{escape(turn.question)}</p><p><b>{mark} {escape(turn.answer)}</b></p>{true}"
