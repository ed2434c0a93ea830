"""One set of weights, six combinations of modalities: what is answered with what is given.

A value of `Run.evaluations`: Combinations("any", "questions", clips="clips")
"""

import dataclasses
from collections import defaultdict
from collections.abc import Mapping
from typing import Any

import numpy as np

from llama_jax.checked import checked
from llama_jax.evals.base import Eval, Row, held_out
from llama_jax.evals.bootstrap import mean
from llama_jax.evals.inputs import Inputs, encode
from llama_jax.evals.text import answer_length, answers
from llama_jax.evals.vision import SEED, usual_answers
from llama_jax.train.load import Trained

Index = Mapping[str, np.ndarray]


@checked
class Combinations(Eval):
    """Accuracy of answers about pictures and clips, given all, a part, or more than is asked about.

    With text, image and video a question about a picture is read with any clip beside it, and one
    about a clip with any picture. An image or a video alone is one whose question is withheld: more
    than the most frequent answer cannot be expected there, nor of a text alone more than the usual
    answer to the question.

    Attributes:
      on: the stream of questions about pictures.
      clips: the stream of questions about clips.
    """

    clips: str = "clips"

    def rows(self, trained: Trained) -> list[Row]:
        """A row for each combination."""
        readers = {"image": self, "video": dataclasses.replace(self, on=self.clips)}
        inputs, data = {}, []
        for name, reader in readers.items():
            stream, where = held_out(reader.stream(trained))
            inputs[name] = encode(trained, reader.batches(stream, trained.tokenizer), self.batch)
            data.append(where)
        right: dict[str, list[np.ndarray]] = defaultdict(list)
        trivial: dict[str, list[np.ndarray]] = defaultdict(list)
        for name, other in (("image", "video"), ("video", "image")):
            mine, reader = inputs[name], readers[name]
            given = _given(mine, name, other, len(inputs[other].towers[other].x))
            said = self._said(trained, reader, mine, inputs[other], given)
            always, by_question = usual_answers(reader.stream(trained), trained.tokenizer)
            target_B = np.array(mine.target)
            wording_B = target_B == np.array([by_question.get(q, always) for q in mine.asked])
            for combination, said_B in said.items():
                right[combination].append(said_B == target_B)
                asked = "text" in combination
                trivial[combination].append(wording_B if asked else target_B == always)
        return [
            Row.of(
                f"{self.name}_accuracy_{combination}",
                mean(np.concatenate(right[combination])),
                float(np.mean(np.concatenate(trivial[combination]))),
                "usual answer to the question" if "text" in combination else "most frequent answer",
                sum(map(len, right[combination])),
                " and ".join(data),
            )
            for combination in sorted(right, key=lambda name: (name.count("_"), name))
        ]

    def _said(
        self, trained: Trained, reader: Eval, mine: Inputs, others: Inputs, given: dict[str, Index]
    ) -> dict[str, np.ndarray]:
        """The answers in each combination, all in one call: one compilation."""
        both = dataclasses.replace(mine, towers=others.towers | mine.towers)
        names = ("text", "image", "video")
        index = {m: np.concatenate([one[m] for one in given.values()]) for m in names}
        length = answer_length(reader.stream(trained), trained)
        said = np.array(answers(trained, both, index, length, self.batch))
        return dict(zip(given, said.reshape(len(given), -1), strict=True))


def _given(mine: Inputs, name: str, other: str, others: int) -> dict[str, Index]:
    """What each example reads in each combination; -1 is nothing."""
    text_B, own_B = mine.index["text"], mine.index[name]
    none_B = np.full_like(own_B, -1)
    any_B = np.random.default_rng(SEED).integers(others, size=len(own_B)).astype(own_B.dtype)
    some: Any = {
        "text": (text_B, none_B, none_B),
        name: (none_B, own_B, none_B),
        f"{name}_text": (text_B, own_B, none_B),
        "image_video_text": (text_B, own_B, any_B),
    }
    return {
        combination: dict(zip(("text", name, other), index, strict=True))
        for combination, index in some.items()
    }
