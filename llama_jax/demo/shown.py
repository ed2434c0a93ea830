"""What a report shows of each stage: answers, drawn pictures, a clip, a dialogue."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from llama_jax.data import Drawing
from llama_jax.demo.dialogue import Dialogue, dialogue
from llama_jax.demo.examples import Example, examples
from llama_jax.errors import UserError
from llama_jax.evals.drawing import Drawn
from llama_jax.evals.drawing import examples as drawings
from llama_jax.train.load import Trained


@dataclass(frozen=True)
class Shown:
    """Everything that is shown, drawn by lot from the test data.

    Attributes:
      answers: questions about pictures.
      drawn: pictures from captions.
      clips: questions about clips.
      talks: dialogues about pictures.
    """

    answers: Sequence[Example]
    drawn: Sequence[Drawn] = ()
    clips: Sequence[Example] = ()
    talks: Sequence[Dialogue] = ()

    @classmethod
    def of(cls, trained: Mapping[str, Trained]) -> "Shown":
        """By the runs of the stages (`stages.py`)."""
        return cls(
            examples(trained["vqa"]),
            drawings(trained["draw"], drawing(trained["draw"])),
            examples(trained["clips"], count=1, modality="video"),
            [dialogue(trained["talk"])],
        )

    @property
    def pictures(self) -> dict[str, np.ndarray]:
        """The pictures by the names of their files."""
        every = {f"{i:02}": shown.image for i, shown in enumerate(self.answers, 1)}
        for name, several in (("drawn", self.drawn), ("clip", self.clips), ("talk", self.talks)):
            every |= {f"{name}_{i}": shown.image for i, shown in enumerate(several, 1)}
        return {f"pictures/{name}.png": image for name, image in every.items()}

    def as_json(self) -> dict[str, list[dict[str, Any]]]:
        """The same without pixels, for report.json."""
        return {
            "examples": [
                {"picture": f"pictures/{i:02}.png", **_answered(shown)}
                for i, shown in enumerate(self.answers, 1)
            ],
            "drawings": [
                {"picture": f"pictures/drawn_{i}.png", "caption": d.caption, "right": d.right}
                for i, d in enumerate(self.drawn, 1)
            ],
            "clips": [
                {"picture": f"pictures/clip_{i}.png", **_answered(shown)}
                for i, shown in enumerate(self.clips, 1)
            ],
            "dialogues": [
                {"picture": f"pictures/talk_{i}.png", "turns": [vars(turn) for turn in talk.turns]}
                for i, talk in enumerate(self.talks, 1)
            ],
        }


def drawing(trained: Trained) -> str:
    """The stream of drawings of a run.

    Raises:
      UserError: there is none.
    """
    for name, stream in trained.run.data.items():
        if isinstance(stream.task, Drawing):
            return name
    raise UserError(f"run {trained.run.name!r} does not draw, it has {[*trained.run.data]}")


def _answered(shown: Example) -> dict[str, Any]:
    return {
        "question": shown.question,
        "answer": shown.answer.text,
        "confidence": shown.answer.confidence,
        "truth": shown.truth,
    }
