"""A talk about what is seen: each question is asked with the turns before it in front."""

from typing import Any

from llama_jax.data import images
from llama_jax.data.dialogue import Turn, before
from llama_jax.evals.answer import Answer, ask, tasks
from llama_jax.text.roles import framing
from llama_jax.train.load import Trained


class Talk:
    """Turns so far, and what is seen now.

    talk = Talk(load("runs/dialogues"))
    talk.look("image", "circle.png")
    print(talk.say("what color is the shape?"), talk.say("and what was your first answer?"))

    Attributes:
      turns: questions and answers that still stand in front of the next question.
      forgotten: how many older ones were left out at the last question.
    """

    def __init__(self, trained: Trained):
        """Nothing said, nothing seen.

        Raises:
          UserError: the run cannot answer questions.
        """
        tasks(trained.run, ())
        self.trained, self.tokenizer = trained, framing(trained.tokenizer, "talking")
        self.seen: dict[str, Any] = {}
        self.reset()

    def reset(self) -> None:
        """Forgets what was said, and what was seen."""
        self.turns: list[Turn] = []
        self.seen, self.forgotten = {}, 0

    def look(self, modality: str, file: Any) -> None:
        """From now on, this is seen; earlier turns stay in the talk.

        Args:
          modality: "image" or "video".
          file: what `images.decode` or `images.frames` takes.

        Raises:
          UserError: it cannot be read, or the run was not trained with such.
        """
        task: Any = tasks(self.trained.run, [modality])[modality]
        pixels = images.frames(file, task.frames) if modality == "video" else images.decode(file)
        self.seen = self.seen | {modality: pixels}

    def say(self, question: str) -> Answer:
        """The answer, which becomes a turn. After an error the talk is as it was before.

        Turns that the model has no room for are left out, the oldest first.

        Raises:
          UserError: the question is empty, or too long by itself.
        """
        question = question.strip()
        most = min(task.length for task in tasks(self.trained.run, [*self.seen]).values()) - 2
        first = 0
        while first < len(self.turns) and self._tokens(self.turns[first:], question) > most:
            first += 1
        [given] = ask(
            self.trained, [self.seen], [question and before(self.turns[first:]) + question]
        )
        self.turns = [*self.turns[first:], (question, given.text)]
        self.forgotten = first
        return given

    def _tokens(self, turns: list[Turn], question: str) -> int:
        return len(self.tokenizer.encode(before(turns) + question))
