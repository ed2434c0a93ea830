"""easy-VQA as a TFDS data set: one example is one picture with all its questions.

Source: the PyPI package `easy-vqa` (Victor Zhou, MIT): 64x64 pictures of one shape each, 38,575
training questions on 4,000 pictures and 9,673 test questions on 1,000. The splits are the
official ones. Captions are ours, see `shapes.py`.
"""

from collections import defaultdict
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import tensorflow_datasets as tfds

from llama_jax.data.builders.prepare import package
from llama_jax.data.builders.shapes import Facts, answer_type, look, stated_shape

__all__ = ["EasyVqa", "answer_type", "pictures"]


class EasyVqa(tfds.core.GeneratorBasedBuilder):
    """Builds `easy_vqa`; `limit` keeps the first pictures of each split (for tests)."""

    VERSION = tfds.core.Version("1.1.0")
    RELEASE_NOTES = {
        "1.0.0": "Official splits, captions derived from questions and pixels.",
        "1.1.0": "`captions`: all that are true of a picture.",
    }

    def __init__(self, *, limit: int | None = None, **kwargs: Any):
        """Args: limit: Pictures a split, or None for all; the rest as in TFDS."""
        self.limit = limit
        config = tfds.core.BuilderConfig(name=f"first_{limit}") if limit else None
        super().__init__(config=config, file_format="array_record", **kwargs)

    def _info(self) -> tfds.core.DatasetInfo:
        text = tfds.features.Text
        return tfds.core.DatasetInfo(
            builder=self,
            description="Pictures of one shape each, with questions, answers and a caption.",
            homepage="https://github.com/vzhou842/easy-VQA",
            features=tfds.features.FeaturesDict(
                {
                    "image_id": np.int32,
                    "image": tfds.features.Image(shape=(64, 64, 3), encoding_format="png"),
                    "questions": tfds.features.Sequence(text()),
                    "answers": tfds.features.Sequence(text()),
                    "shape": text(),
                    "color": text(),
                    "size": text(),
                    "position": text(),
                    "caption": text(),
                    "captions": tfds.features.Sequence(text()),
                }
            ),
            disable_shuffling=True,  # row i is picture i; the loader shuffles
        )

    def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
        del dl_manager  # the package holds everything
        return {split: self._generate_examples(split) for split in ("train", "test")}

    def _generate_examples(self, split: str) -> Iterator[tuple[int, dict[str, Any]]]:
        for shown in pictures(split, self.limit):
            yield (
                shown.number,
                {
                    "image_id": shown.number,
                    "image": shown.path,
                    "questions": shown.questions,
                    "answers": shown.answers,
                    "caption": shown.readings[0].caption,
                    "captions": [facts.caption for facts in shown.readings],
                    **shown.readings[0]._asdict(),
                },
            )


class Shown(NamedTuple):
    """A picture with its questions, and what it shows in every way that is true."""

    number: int
    path: str
    pixels_YXR: np.ndarray
    questions: list[str]
    answers: list[str]
    readings: list[Facts]


def pictures(split: str, limit: int | None = None) -> Iterator[Shown]:
    """The pictures of a split by number, or the first of them.

    Raises:
      UserError: the package is missing.
    """
    from PIL import Image

    source = package("easy_vqa", "easy-vqa")
    asked = defaultdict(list)
    for question, answer, picture in zip(*getattr(source, f"get_{split}_questions")(), strict=True):
        asked[picture].append((question, answer))
    paths = getattr(source, f"get_{split}_image_paths")()
    for picture in sorted(paths)[:limit]:
        questions, answers = map(list, zip(*asked[picture], strict=True))
        with Image.open(paths[picture]) as image:
            pixels_YXR = np.asarray(image.convert("RGB"))
        readings = look(pixels_YXR, stated_shape(questions, answers))
        yield Shown(picture, paths[picture], pixels_YXR, questions, answers, readings)
