"""Drawing judged without a person: what a picture shows is read from its pixels.

Place and size are read as for the captions of easy-VQA (`data/builders/shapes.py`), shape and
colour so that blurred edges do no harm (`shape_judge.py`). How far both can be trusted stands
beside: they are asked about the test pictures themselves, and about them after the image tokenizer.
"""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

from llama_jax.checked import checked
from llama_jax.data.builders.shapes import COLORS, GROUND, SHAPES, Facts, look
from llama_jax.data.images import light
from llama_jax.data.rows import get, texts_of
from llama_jax.errors import UserError
from llama_jax.evals.base import Eval, Row, held_out
from llama_jax.evals.draw import drawn
from llama_jax.evals.inputs import in_batches
from llama_jax.evals.shape_judge import ShapeJudge, color_of
from llama_jax.objectives.reconstruct import psnr
from llama_jax.train.load import Trained

SEED = 0  # of what is drawn, and of the baseline's pictures
LEAST = 12  # pixels of a shape; what has fewer shows none,
MOST = 0.5  # nor what fills more of the picture: no shape of easy-VQA does
CAPTION = re.compile(
    rf"a (small|large) ({'|'.join(COLORS)}) ({'|'.join(SHAPES)}) at the ((?:top|bottom) \w+)"
)


@dataclass(frozen=True)
class Drawn:
    """A caption, what was drawn from it, uint8 [Y,X,R], and whether the judge reads it there."""

    caption: str
    image: np.ndarray
    right: bool


@checked
class Drawings(Eval):
    """Of pictures drawn from held-out captions: colour, shape, quadrant, size, and all of them."""

    def rows(self, trained: Trained) -> list[Row]:
        """Five shares; the baseline is a picture of the training data, drawn by lot."""
        stream, data = held_out(self.stream(trained))
        asked = [facts[0] for facts in captions(stream, self.limit)]
        training = [*captions(self.stream(trained))]
        judge_shape = shape_judge(self.stream(trained), [facts[0].shape for facts in training])
        images = drawn(trained, [facts.caption for facts in asked], seed=SEED)
        seen = [judged(image, judge_shape) for image in images]
        lot = np.random.default_rng(SEED).integers(len(training), size=len(asked))
        model, chance = judge(asked, seen), judge(asked, [training[i] for i in lot])
        return [
            Row(
                f"{self.name}_{name}_accuracy",
                float(np.mean(model[name])),
                float(np.mean(chance[name])),
                "any training picture",
                len(asked),
                data,
            )
            for name in model
        ]


@checked
class Reconstructions(Eval):
    """Of held-out pictures after the image tokenizer: what is lost, and which words are used.

    Of easy-VQA's pictures also whether the judge of drawings reads the same in them as their
    questions say; there the baseline is what it reads in the pictures themselves.
    """

    def rows(self, trained: Trained) -> list[Row]:
        """PSNR in decibels, perplexity and use of words, and the judge's shares."""
        stream, data = held_out(self.stream(trained))
        batches = [*self.batches(stream, trained.tokenizer)]
        image = np.concatenate([b["image"][b["row_valid"]] for b in batches])
        row = np.concatenate([b["id"][b["row_valid"]] for b in batches])
        made, words = self._passed(trained, image)
        plain = np.broadcast_to(image.mean(axis=(1, 2), keepdims=True), image.shape)
        counts = np.bincount(words.ravel(), minlength=trained.run.model.pictures.codes)
        share = counts[counts > 0] / counts.sum()
        perplexity, codes = float(np.exp(-np.sum(share * np.log(share)))), len(counts)
        plan: list[tuple[str, float, float, str]] = [
            ("psnr", decibels(made, image), decibels(plain, image), "one colour a picture"),
            ("word_perplexity", perplexity, float(codes), "all words alike"),
            ("words_used", len(share) / codes, 1.0, "all words"),
        ]
        rows = stream.source.open()
        if {"color", "shape", "size", "position"} <= light(rows, int(row[0])).keys():
            truth = [Facts(**{k: light(rows, i)[k] for k in Facts._fields}) for i in row.tolist()]
            ours = self.stream(trained)
            training = ours.source.open()
            shapes = [light(training, i)["shape"] for i in range(len(training))]
            judge_shape = shape_judge(ours, shapes)
            kept, itself = (
                judge(truth, [judged(picture, judge_shape) for picture in pictures])
                for pictures in (made, image)
            )
            own = "the judge on the pictures themselves"
            plan += [
                (f"{k}_kept", float(kept[k].mean()), float(itself[k].mean()), own) for k in kept
            ]
        return [
            Row(f"{self.name}_{name}", value, baseline, what, len(image), data)
            for name, value, baseline, what in plan
        ]

    def _passed(self, trained: Trained, image: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The pictures after the tokenizer, uint8, and their words, from 0."""
        model, first = trained.model, trained.run.model.text.vocab

        @jax.jit
        def words(params, pixels):
            return model.apply({"params": params}, pixels, method="words_of")

        @jax.jit
        def paint(params, ids):
            return model.apply({"params": params}, ids, method="paint")

        ids = in_batches(lambda x: words(trained.params, x), self.batch, image)
        pixels = in_batches(lambda x: paint(trained.params, x), self.batch, ids)
        return np.round((pixels + 1) * 127.5).astype(np.uint8), ids - first


def shape_judge(stream: Any, shapes: Sequence[str]) -> ShapeJudge:
    """The classifier of the pictures of a training stream, whose rows show these shapes."""
    task = stream.task
    return ShapeJudge.of(stream.source.open(), task.image, task.size, shapes)


def judged(image_YXR: np.ndarray, judge_shape: Callable[[np.ndarray], str]) -> list[Facts]:
    """What a picture shows, in every way that is true; nothing of one without a shape."""
    mask_YX = image_YXR.min(-1) < GROUND
    if not LEAST <= mask_YX.sum() <= MOST * mask_YX.size:
        return []
    shape, color = judge_shape(image_YXR), color_of(image_YXR)
    return [facts._replace(color=color) for facts in look(image_YXR, shape)]


def judge(asked: Sequence[Facts], seen: Sequence[Sequence[Facts]]) -> Mapping[str, np.ndarray]:
    """Whether each picture shows what was asked for: by colour, shape, quadrant, size, and all."""

    def right(*names: str) -> np.ndarray:
        def same(wish: Facts, reading: Facts) -> bool:
            return all(getattr(wish, name) == getattr(reading, name) for name in names)

        pairs = zip(asked, seen, strict=True)
        return np.array([any(same(wish, one) for one in readings) for wish, readings in pairs])

    return {
        "color": right("color"),
        "shape": right("shape"),
        "quadrant": right("position"),
        "size": right("size"),
        "all": right(*Facts._fields),
    }


def captions(stream: Any, limit: int | None = None) -> Iterator[list[Facts]]:
    """What the captions of each row of a stream say.

    Raises:
      UserError: a caption of another form, which pixels cannot be judged by.
    """
    rows = stream.source.open()
    for i in range(min(len(rows), limit or len(rows))):
        texts = texts_of(get(light(rows, i), stream.task.caption, rows.name), rows.name)
        yield [read(text) for text in texts]


def read(caption: str) -> Facts:
    """What a caption says.

    Raises:
      UserError: it is of another form.
    """
    found = CAPTION.fullmatch(caption.strip())
    if found is None:
        raise UserError(
            f"the caption {caption!r:.60} cannot be judged by pixels; expected one of easy_vqa's, "
            "such as 'a small blue circle at the top left'"
        )
    size, color, shape, position = found.groups()
    return Facts(shape, color, size, position)


def decibels(made: np.ndarray, image: np.ndarray) -> float:
    """The mean over pictures of their PSNR, of bytes."""
    difference = (made.astype(np.float32) - image.astype(np.float32)) / 127.5
    return float(np.mean(psnr(np.mean(difference**2, axis=(1, 2, 3)))))


def examples(trained: Trained, on: str, count: int = 4, seed: int = SEED) -> list[Drawn]:
    """Some held-out captions, drawn, for a report.

    Args:
      trained: a run that draws.
      on: the stream of drawings.
      count: how many.
      seed: decides which captions, and what is drawn.
    """
    training = Drawings("draw", on).stream(trained)
    stream, _ = held_out(training)
    every = [*captions(stream)]
    chosen = np.random.default_rng(seed).choice(len(every), size=count, replace=len(every) < count)
    asked = [every[i][0] for i in chosen]
    images = drawn(trained, [facts.caption for facts in asked], seed=seed)
    judge_shape = shape_judge(training, [facts[0].shape for facts in captions(training)])
    right = judge(asked, [judged(image, judge_shape) for image in images])["all"]
    return [Drawn(f.caption, *pair) for f, *pair in zip(asked, images, right.tolist(), strict=True)]
