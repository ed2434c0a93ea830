"""Dialogues of three turns about the pictures of easy-VQA, whose last turn needs the first.

Source: the PyPI package `easy-vqa` (Victor Zhou, MIT), its official splits; the dialogues are ours,
made of what a picture shows (`shapes.py`). A picture has one of each kind:

    wish     a shape that is wished for; at last, what would have to change
    recall   a question about colour, shape or place; at last, what the first answer was
    guesses  two guesses; at last, how many of them are right
    refer    two things to be told; after one of them, "and the other?"
    other    a question about another picture; at last, "and in this picture?"

so the picture and the last question alone do not tell the answer. A row is a dialogue:
`questions[n]` is turn n with the turns before it, `answers[n]` its reply; `source` and `target` are
those of the last turn, `last` is its question without the others, as a control. Of `other`, whose
first turn was about the picture `earlier_id`, `questions` begin with the second: at each of them
the picture of the row is seen, and the earlier one is known by what was said.

Examples (measured): train 20,000, test 5,000. Always giving the answer that is most frequent in
training to the last question is right in 25 % of the test's wishes, 9 % of what is recalled (a
third, for who sees the picture), 49 % of the guesses, 12 % of the references and of the others.
"""

import functools
import random
from collections import defaultdict
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


def refer(facts: Facts, chance: random.Random) -> list[Turn]:
    """Two things that are asked for by name, one of them is told; the other, without its name."""
    wanted = chance.sample(list(ASK), 2)
    first, second = chance.sample(wanted, 2)
    return [
        (f"i want to know its {wanted[0]} and its {wanted[1]}. do you see it?", "yes"),
        (f"its {first}?", getattr(facts, first)),
        ("and the other?", getattr(facts, second)),
    ]


def other(facts: Facts, earlier: Facts, field: str) -> list[Turn]:
    """A question about an earlier picture, and the same about this one."""
    return [
        (ASK[field], getattr(earlier, field)),
        ("is it the same here?", "yes" if _same(facts, earlier, field) else "no"),
        ("and in this picture?", getattr(facts, field)),
    ]


def _same(facts: Facts, earlier: Facts, field: str) -> bool:
    return getattr(facts, field) == getattr(earlier, field)


KINDS: dict[str, Callable[[Facts, random.Random], list[Turn]]] = {
    "wish": wish,
    "recall": recall,
    "guesses": guesses,
    "refer": refer,
}


class EasyVqaDialogues(Texts):
    """Builds `easy_vqa_dialogues`; `limit` keeps the first rows of each split (for tests)."""

    VERSION = tfds.core.Version("1.1.0")
    RELEASE_NOTES = {
        "1.0.0": "Wishes, recalled answers and guesses.",
        "1.1.0": "References, and the same question for another picture.",
    }
    SPLITS = ("train", "test")
    FIELDS = {
        "image_id": np.int32,
        "earlier_id": np.int32,
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
        every = [(shown.number, shown.path, shown.readings[0]) for shown in pictures(split)]
        alike: dict[tuple[str, str], list[int]] = defaultdict(list)
        for place, (_, _, facts) in enumerate(every):
            for field in ASK:
                alike[field, getattr(facts, field)].append(place)
        for place, (number, path, facts) in enumerate(every):
            picture = {"image_id": number, "image": path}
            for kind, talk in KINDS.items():
                turns = talk(facts, random.Random(f"{split} {number} {kind}"))
                yield _row(kind, turns) | picture | {"earlier_id": number}
            chance = random.Random(f"{split} {number} other")
            field = chance.choice(list(ASK))
            # The same answer in about half of the dialogues, by chance in some of the others.
            same = chance.random() < 0.4
            known = alike[field, getattr(facts, field)] if same else range(len(every))
            earlier_id, _, earlier = every[chance.choice([p for p in known if p != place] or known)]
            row = _row("other", other(facts, earlier, field), begin=1)
            yield row | picture | {"earlier_id": earlier_id}


def _row(kind: str, turns: list[Turn], begin: int = 0) -> Row:
    """The texts of a dialogue of which the picture is seen from turn `begin` on."""
    questions = joined(turns)
    return {
        "source": questions[-1],
        "target": turns[-1][1],
        "task": "answer",
        "kind": kind,
        "questions": questions[begin:],
        "answers": [answer for _, answer in turns[begin:]],
        "last": turns[-1][0],
    }
