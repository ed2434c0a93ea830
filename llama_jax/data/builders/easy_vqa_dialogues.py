"""Dialogues of three turns about the pictures of easy-VQA, whose last turn needs the first.

Source: the PyPI package `easy-vqa` (Victor Zhou, MIT), its official splits; the dialogues are ours,
made of what a picture shows (`shapes.py`). A picture has one of each kind:

    wish     a shape that is wished for; at last, what would have to change
    recall   a question about colour, shape or place; at last, what the first answer was
    guesses  two guesses; at last, how many of them are right

so the picture and the last question alone do not tell the answer. A row is a dialogue:
`questions[n]` is turn n with the turns before it, `answers[n]` its reply; `source` and `target` are
those of the last turn, `last` is its question without the others, as a control.

Examples (measured): train 12,000, test 3,000. Always giving the most frequent answer to the last
question is right in 26 % of the test's wishes, 14 % of what is recalled (a third, for who sees the
picture) and 49 % of the guesses.
"""

import functools
import random
from collections.abc import Callable, Iterator

import numpy as np
import tensorflow_datasets as tfds

from llama_jax.data.builders.easy_vqa import pictures
from llama_jax.data.builders.shapes import COLORS, SHAPES, Facts
from llama_jax.data.builders.texts import Row, Texts
from llama_jax.data.dialogue import Turn, joined

ASK = {
    "color": "what color is the shape?",
    "shape": "what shape is in the image?",
    "position": "where is the shape?",
}


def _maybe(chance: random.Random, right: str, words: tuple[str, ...]) -> str:
    """The right word in half of the cases, else another one."""
    return right if chance.random() < 0.5 else chance.choice([w for w in words if w != right])


def wish(facts: Facts, chance: random.Random) -> list[Turn]:
    """A wished colour and shape; what differs from them."""
    color = _maybe(chance, facts.color, tuple(COLORS))
    shape = _maybe(chance, facts.shape, SHAPES)
    differs = color != facts.color, shape != facts.shape
    field = chance.choice(list(ASK))
    change = {(False, False): "nothing", (True, False): "color", (False, True): "shape"}
    return [
        (f"i wish for a {color} {shape}. is it there?", "no" if any(differs) else "yes"),
        (ASK[field], getattr(facts, field)),
        ("what would have to change for my wish?", change.get(differs, "both")),
    ]


def recall(facts: Facts, chance: random.Random) -> list[Turn]:
    """Two questions; what the first answer was."""
    first, second = chance.sample(list(ASK), 2)
    answer = getattr(facts, first)
    return [
        (ASK[first], answer),
        (ASK[second], getattr(facts, second)),
        ("and what was your first answer?", answer),
    ]


def guesses(facts: Facts, chance: random.Random) -> list[Turn]:
    """Two guesses; how many of them are right."""
    color = _maybe(chance, facts.color, tuple(COLORS))
    shape = _maybe(chance, facts.shape, SHAPES)
    right = [color == facts.color, shape == facts.shape]
    return [
        (f"i guess that it is {color}. am i right?", "yes" if right[0] else "no"),
        (f"i guess that it is a {shape}. am i right?", "yes" if right[1] else "no"),
        ("how many of my guesses are right?", ("none", "one", "both")[sum(right)]),
    ]


KINDS: dict[str, Callable[[Facts, random.Random], list[Turn]]] = {
    "wish": wish,
    "recall": recall,
    "guesses": guesses,
}


class EasyVqaDialogues(Texts):
    """Builds `easy_vqa_dialogues`; `limit` keeps the first rows of each split (for tests)."""

    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES = {"1.0.0": "Wishes, recalled answers and guesses."}
    SPLITS = ("train", "test")
    FIELDS = {
        "image_id": np.int32,
        "image": functools.partial(tfds.features.Image, shape=(64, 64, 3), encoding_format="png"),
        "kind": str,
        "questions": list,
        "answers": list,
        "last": str,
    }
    ABOUT = "Dialogues of three turns about pictures of one shape."
    HOMEPAGE = "https://github.com/vzhou842/easy-VQA"

    def rows(self, split: str) -> Iterator[Row]:
        """The dialogues of a picture, then of the next."""
        for shown in pictures(split):
            for kind, talk in KINDS.items():
                chance = random.Random(f"{split} {shown.number} {kind}")
                turns = talk(shown.readings[0], chance)
                questions = joined(turns)
                yield {
                    "source": questions[-1],
                    "target": turns[-1][1],
                    "task": "answer",
                    "image_id": shown.number,
                    "image": shown.path,
                    "kind": kind,
                    "questions": questions,
                    "answers": [answer for _, answer in turns],
                    "last": turns[-1][0],
                }
