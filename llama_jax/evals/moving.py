"""Clips: answers by kind of question, and what a single frame or frames in disorder still tell."""

import itertools
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np

from llama_jax.checked import checked
from llama_jax.evals.base import Eval, Row, held_out
from llama_jax.evals.bootstrap import mean
from llama_jax.evals.inputs import encode
from llama_jax.evals.text import answer_length, answers
from llama_jax.evals.vision import SEED, usual_answers
from llama_jax.train.load import Trained

# What the questions of `easy_vqa_clips` are about; a question that is not among them has no row of
# its own.
ABOUT = {
    "in which direction does the shape move?": "direction",
    "does the shape move slowly or fast?": "speed",
    "in which direction does the shape move first?": "first",
    "in which direction does the shape move last?": "last",
    "what color is the faster shape?": "faster",
    "what color is the slower shape?": "slower",
    "in which direction do the shapes move?": "direction_of_two",
}
Frames = Callable[[np.ndarray], np.ndarray]  # videos [I,T,Y,X,R] to videos of the same shape


@checked
class Clips(Eval):
    """Accuracy of answers about clips, by kind of question, and two controls.

    Single frame: all frames are the clip's first. Shuffled frames: in an order that no frame of the
    clip keeps. What a model still gets right there, it does not owe to motion, or to its order.
    """

    def rows(self, trained: Trained) -> list[Row]:
        """All questions and each kind: as they are, with a single frame, with shuffled frames."""
        stream, data = held_out(self.stream(trained))
        seen = (same, single, Shuffled(SEED))
        batches = [filmed(self.batches(stream, trained.tokenizer), change) for change in seen]
        # One after another in one call: one compilation.
        inputs = encode(trained, itertools.chain(*batches), self.batch)
        length = answer_length(stream, trained)
        said = np.array(answers(trained, inputs, inputs.index, length, self.batch))
        right_CB = (said == np.array(inputs.target)).reshape(len(seen), -1)
        count = right_CB.shape[1]
        usual, by_question = usual_answers(self.stream(trained), trained.tokenizer)
        asked, target = inputs.asked[:count], inputs.target[:count]
        wording_B = np.array(
            [by_question.get(q, usual) == t for q, t in zip(asked, target, strict=True)]
        )
        about_B = np.array([ABOUT.get(question, "") for question in asked])
        kinds = [kind for kind in ABOUT.values() if np.any(about_B == kind)]
        return [
            Row.of(
                f"{self.name}_accuracy{f'_{kind}' * bool(kind)}{name}",
                mean(right_B[of_B]),
                float(np.mean(wording_B[of_B])),
                "usual answer to the question",
                int(np.sum(of_B)),
                data,
            )
            for right_B, name in zip(
                right_CB, ("", "_single_frame", "_shuffled_frames"), strict=True
            )
            for kind in ("", *kinds)
            for of_B in [(about_B == kind) | (not kind)]
        ]


def filmed(batches: Iterable[dict[str, Any]], change: Frames) -> Iterator[dict[str, Any]]:
    """Batches with other frames in their videos."""
    for made in batches:
        yield made | {"video": change(made["video"])}


def same(video_ITYXR: np.ndarray) -> np.ndarray:
    """The frames as they are."""
    return video_ITYXR


def single(video_ITYXR: np.ndarray) -> np.ndarray:
    """The first frame, again and again."""
    return np.broadcast_to(video_ITYXR[:, :1], video_ITYXR.shape)


class Shuffled:
    """Frames in another order for each clip, by chance."""

    def __init__(self, seed: int):
        """Always the same orders in the same calls."""
        self.rng = np.random.default_rng(seed)

    def __call__(self, video_ITYXR: np.ndarray) -> np.ndarray:
        """The frames, none of two or more where it was."""
        count = video_ITYXR.shape[1]
        orders = []
        for _ in video_ITYXR:
            order = self.rng.permutation(count)
            moved = np.empty(count, int)
            moved[order] = np.roll(order, 1)  # a permutation in one cycle
            orders.append(moved)
        return np.take_along_axis(video_ITYXR, np.array(orders)[:, :, None, None, None], axis=1)
