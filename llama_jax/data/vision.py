"""Tasks over pictures (or clips) with captions or questions."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from llama_jax.checked import checked
from llama_jax.data import fields as r
from llama_jax.data.checks import at_least, share
from llama_jax.data.corrupt import Masking
from llama_jax.data.images import (
    Pictures,
    decode,
    frames,
    light,
    picture_fields,
    stream_name,
)
from llama_jax.data.rows import Rows, get, texts_of
from llama_jax.errors import UserError
from llama_jax.messages import cut
from llama_jax.text.roles import Framing, framing
from llama_jax.text.tokenizer import trained_here
from llama_jax.text.vocabulary import Vocabulary


@checked
class Captions:
    """A picture and its caption `<cls> caption <sep>`, for alignment.

    `class` is the caption's hash, `classes` the hashes of all captions of the picture: which texts
    are right for which pictures, though captions repeat and a picture has several.

    With `mlm` the caption is corrupted, for MLM grounded in the picture; with `answer_length` it
    comes as decoder fields too, for captioning beside alignment (CoCa, arXiv:2205.01917).

    Attributes:
      length: tokens of a row, T.
      mlm: how tokens are hidden; None leaves them.
      size: Y = X.
      image: field of the picture, or of the video if `frames` is not 0.
      caption: field of the caption, or of several (one is drawn; the first in evaluation).
      frames: frames to take of a video; 0 for a picture.
      answer_length: T of the decoder; 0 gives it nothing to write.
      most: captions that a picture has at most.
    """

    length: int = 24
    mlm: Masking | None = None
    size: int = 64
    image: str = "image"
    caption: str = "caption"
    frames: int = 0
    answer_length: int = 0
    most: int = 8

    def __post_init__(self) -> None:
        """Checks the values."""
        at_least(1, self, "length", "size", "most")
        at_least(0, self, "frames", "answer_length")

    def fields(self, batch: int, tokenizer: Vocabulary) -> r.Fields:
        """Text, picture and class."""
        del tokenizer
        return {
            **r.masked_fields(batch, self.length, self.mlm),
            **picture_fields(batch, self.size, self.frames),
            **(r.decoder_fields(batch, self.answer_length) if self.answer_length else {}),
            "class": ((batch,), "int32"),
            "classes": ((batch, self.most), "int32"),
            "id": ((batch,), "int32"),
        }

    def prepare(
        self, rows: Rows, tokenizer: Vocabulary, keep: np.ndarray, once: bool = False
    ) -> r.Examples:
        """One example a row."""
        tokenizer = trained_here(tokenizer, "the task Captions")
        pictures = Pictures.of(rows, self.image, self.size, self.frames)
        framed = r.Memory(
            lambda text: r.framed_words(r.worded(text, tokenizer), tokenizer, self.length)
        )
        encode = r.Memory(tokenizer.encode)

        def make(slots: Sequence[int], rngs: Sequence[np.random.Generator]) -> r.Batch:
            index_B = keep[np.asarray(slots)]
            every = _captions(rows, self.caption, index_B, self.most)
            chosen = _drawn(every, rngs, once)
            texts = [framed(text) for text in chosen]
            batch = {
                **r.masked_batch(texts, self.length, rngs, self.mlm, tokenizer),
                stream_name(self.frames): pictures(index_B),
                "class": np.array([r.identity(text) for text in chosen], np.int32),
                "classes": _classes(every, self.most),
                "id": index_B.astype(np.int32),
            }
            if self.answer_length:
                written = [encode(text) for text in chosen]
                batch |= r.decoder_batch(written, self.answer_length, tokenizer)
            return batch

        return r.Examples(keep, make)


@checked
class Describe:
    """A picture and a fixed prompt give the caption: the decoder writes it.

    `classes` are the hashes of all captions of the picture: any of them is a right answer.

    Attributes:
      length: T of the prompt, `<cls> prompt <sep>`.
      answer_length: T of the decoder.
      prompt: the text; empty by default.
      size: Y = X.
      image: field of the picture, or of the video if `frames` is not 0.
      caption: field of the caption, or of several.
      frames: frames to take of a video; 0 for a picture.
      most: captions that a picture has at most.
    """

    length: int = 4
    answer_length: int = 24
    prompt: str = ""
    size: int = 64
    image: str = "image"
    caption: str = "caption"
    frames: int = 0
    most: int = 8

    def __post_init__(self) -> None:
        """Checks the values."""
        at_least(1, self, "length", "answer_length", "size", "most")
        at_least(0, self, "frames")

    def fields(self, batch: int, tokenizer: Vocabulary) -> r.Fields:
        """Text, picture and decoder fields."""
        del tokenizer
        return {
            **r.text_fields(batch, self.length),
            **picture_fields(batch, self.size, self.frames),
            **r.decoder_fields(batch, self.answer_length),
            "classes": ((batch, self.most), "int32"),
            "id": ((batch,), "int32"),
        }

    def prepare(
        self, rows: Rows, tokenizer: Vocabulary, keep: np.ndarray, once: bool = False
    ) -> r.Examples:
        """One example a row."""
        tokenizer = framing(tokenizer, "the task Describe")
        pictures = Pictures.of(rows, self.image, self.size, self.frames)
        encode = r.Memory(tokenizer.encode)
        prompt = tokenizer.encode(self.prompt) if self.prompt else []
        if len(prompt) > self.length - 2:
            raise UserError(
                f"prompt={self.prompt!r} has {len(prompt)} tokens and length={self.length} leaves "
                f"room for {self.length - 2}; try length={len(prompt) + 2}"
            )
        prompt = r.framed(prompt, tokenizer, self.length)

        def make(slots: Sequence[int], rngs: Sequence[np.random.Generator]) -> r.Batch:
            index_B = keep[np.asarray(slots)]
            every = _captions(rows, self.caption, index_B, self.most)
            chosen = _drawn(every, rngs, once)
            return {
                **r.text_batch([prompt] * len(index_B), self.length),
                stream_name(self.frames): pictures(index_B),
                **r.decoder_batch([encode(t) for t in chosen], self.answer_length, tokenizer),
                "classes": _classes(every, self.most),
                "id": index_B.astype(np.int32),
            }

        return r.Examples(keep, make)


@checked
class Questions:
    """A picture with some of its questions: `<cls> question <sep>`, and the answer to decode.

    An example is a picture; `per_image` of its questions are drawn (some twice if it has fewer)
    and share the picture, so I = B / per_image. In evaluation every question comes exactly once,
    and slots that a picture leaves over have `row_valid` False and weights of zero.

    Attributes:
      length: T of a question.
      answer_length: T of an answer.
      per_image: questions that share a picture.
      absent: share of pictures that are marked as missing in training, so that the model also
        learns to answer without one; never in evaluation.
      size: Y = X.
      image: field of the picture, or of the video if `frames` is not 0.
      questions: field of the questions (a list, or one text).
      answers: field of their answers.
      frames: frames to take of a video; 0 for a picture.
    """

    length: int = 24
    answer_length: int = 4
    per_image: int = 4
    absent: float = 0.0
    size: int = 64
    image: str = "image"
    questions: str = "questions"
    answers: str = "answers"
    frames: int = 0

    def __post_init__(self) -> None:
        """Checks the values."""
        at_least(1, self, "length", "answer_length", "per_image", "size")
        at_least(0, self, "frames")
        share(self, "absent")

    def fields(self, batch: int, tokenizer: Vocabulary) -> r.Fields:
        """Text, picture and decoder fields."""
        del tokenizer
        if batch % self.per_image:
            raise UserError(
                f"batch={batch} is not a multiple of per_image={self.per_image}; "
                f"try batch={-(-batch // self.per_image) * self.per_image}"
            )
        return {
            **r.text_fields(batch, self.length),
            **picture_fields(batch // self.per_image, self.size, self.frames),
            **self._valid_field(batch // self.per_image),
            **r.decoder_fields(batch, self.answer_length),
            "id": ((batch,), "int32"),
        }

    def prepare(
        self, rows: Rows, tokenizer: Vocabulary, keep: np.ndarray, once: bool = False
    ) -> r.Examples:
        """One example a picture; in evaluation one for each `per_image` of its questions."""
        tokenizer = framing(tokenizer, "the task Questions")
        texts = [light(rows, i) for i in range(len(rows))]
        asked = [texts_of(get(row, self.questions, rows.name), rows.name) for row in texts]
        told = [texts_of(get(row, self.answers, rows.name), rows.name) for row in texts]
        blank = 0
        for i, (q, a) in enumerate(zip(asked, told, strict=True)):
            if len(q) != len(a):
                raise UserError(f"{rows.name} row {i} has {len(q)} questions, {len(a)} answers")
            both = [pair for pair in zip(q, a, strict=True) if all(map(str.strip, pair))]
            blank += len(q) - len(both)
            asked[i], told[i] = [q for q, _ in both], [a for _, a in both]
        if blank:
            rows.notes.append(
                f"{rows.name}: {blank:,} questions without a text or an answer are left out"
            )
        counts = np.array([len(q) for q in asked])
        first = np.cumsum(counts) - counts  # number of a picture's first question: its `id`
        pictures = Pictures.of(rows, self.image, self.size, self.frames)
        ask = r.Memory(lambda q: r.framed(tokenizer.encode(q), tokenizer, self.length))
        tell = r.Memory(tokenizer.encode)
        keep = keep[counts[keep] > 0]
        each = self.per_image
        groups = -(-counts[keep] // each) if once else np.ones(len(keep), np.int64)
        picture_E = np.repeat(keep, groups)
        group_E = np.arange(len(picture_E)) - np.repeat(np.cumsum(groups) - groups, groups)

        def make(slots: Sequence[int], rngs: Sequence[np.random.Generator]) -> r.Batch:
            index_I = picture_E[np.asarray(slots)]
            picks, valid = [], []
            for slot, rng, i in zip(slots, rngs, index_I.tolist(), strict=True):
                place = np.arange(each) + int(group_E[slot]) * each
                valid.append(place < counts[i] if once else np.ones(each, bool))
                order = np.arange(int(counts[i])) if once else rng.permutation(counts[i])
                picks.append([(i, int(k)) for k in order[place % counts[i]]])
            flat = [pick for group in picks for pick in group]
            valid_B = np.concatenate(valid)
            batch = {
                **r.text_batch([ask(asked[i][k]) for i, k in flat], self.length),
                stream_name(self.frames): pictures(index_I),
                **r.decoder_batch(
                    [tell(told[i][k]) for i, k in flat], self.answer_length, tokenizer
                ),
                "id": np.array([first[i] + k for i, k in flat], np.int32),
            }
            for name in self._valid_field(0):
                hidden_I = [not once and rng.random() < self.absent for rng in rngs]
                batch[name] = ~np.array(hidden_I, bool)
            if once:
                batch["row_valid"] = valid_B
                batch["loss_weights"] *= valid_B[:, None]
            return batch

        ids = np.arange(len(picture_E)) if once else picture_E
        return r.Examples(ids, make, rows=each)

    def asked(self, questions: Sequence[str], images: Sequence[Any], tokenizer: Framing) -> r.Batch:
        """Questions as the model reads them: no answers, one picture (or video) each.

        Args:
          questions: texts without blanks around them.
          images: pictures, each as `images.decode` takes them, or videos, as `images.frames`; None
            for a question about nothing.
          tokenizer: the tokenizer of the run.

        Raises:
          UserError: a question is too long, or a picture cannot be read.
        """
        texts = [tokenizer.encode(question) for question in questions]
        most = self.length - 2  # <cls> and <sep>
        for question, text in zip(questions, texts, strict=True):
            if len(text) > most:
                raise UserError(
                    f"the question {cut(question, 40)!r} has {len(text)} tokens; the model was "
                    f"trained with up to {most}; try a shorter one"
                )
        framed = [r.framed(text, tokenizer, self.length) for text in texts]
        return r.text_batch(framed, self.length) | self._looked(images)

    def _looked(self, images: Sequence[Any]) -> r.Batch:
        """Pixels, and which of them are there; nothing if none is."""
        pixels = [None if image is None else self._pixels(image) for image in images]
        there = next((p for p in pixels if p is not None), None)
        if there is None:
            return {}
        name = stream_name(self.frames)
        return {
            name: np.stack([np.zeros_like(there) if p is None else p for p in pixels]),
            f"{name}_valid": np.array([p is not None for p in pixels]),
        }

    def _pixels(self, image: Any) -> np.ndarray:
        return frames(image, self.frames, self.size) if self.frames else decode(image, self.size)

    def _valid_field(self, pictures: int) -> r.Fields:
        """`image_valid` or `video_valid`, if pictures may be missing."""
        return {f"{stream_name(self.frames)}_valid": ((pictures,), "bool")} if self.absent else {}


def _captions(rows: Rows, field: str, index_B: np.ndarray, most: int) -> list[list[str]]:
    """All captions of each row."""
    every = [
        [
            text
            for text in texts_of(get(light(rows, i), field, rows.name), rows.name)
            if text.strip()
        ]
        for i in index_B.tolist()
    ]
    for i, captions in zip(index_B.tolist(), every, strict=True):
        if not 0 < len(captions) <= most:
            raise UserError(
                f"{rows.name} row {i} has {len(captions)} captions in {field!r}, 1 to most={most} "
                f"were expected; try most={len(captions)}, or drop a row without any"
            )
    return every


def _drawn(
    every: Sequence[list[str]], rngs: Sequence[np.random.Generator], once: bool
) -> list[str]:
    """One caption a row, or the first in evaluation."""
    return [
        captions[0 if once or len(captions) == 1 else int(rng.integers(len(captions)))]
        for captions, rng in zip(every, rngs, strict=True)
    ]


def _classes(every: Sequence[list[str]], most: int) -> np.ndarray:
    """The hashes of each row's captions, int32 [B, most]; the first one fills the rest."""
    return np.array(
        [[r.identity(text) for text in (c + c[:1] * most)[:most]] for c in every], np.int32
    )
