"""A picture, a question and its answer as one text, for decoders that look at pictures."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from llama_jax.checked import checked
from llama_jax.data import fields as r
from llama_jax.data.checks import at_least
from llama_jax.data.images import light
from llama_jax.data.rows import Rows, get, texts_of
from llama_jax.data.tiles import Tiles, sees
from llama_jax.errors import UserError
from llama_jax.text.vocabulary import Vocabulary

Text = tuple[Sequence[int], Sequence[int]]  # ids of what is asked, and of what is told
IMAGE = "<|image|>"  # the control token that stands for a picture, of tokenizers that have one


@checked
class Seen:
    """`<bos> picture question answer <eos>`, of which the answer is to be written.

    An example is a picture; one of its questions is drawn. In evaluation every question comes once.
    A picture is cut into tiles, so its shape is kept. The id that stands for it is the tokenizer's
    control token `<|image|>`, else the first id after its vocabulary.

    Attributes:
      length: tokens of a row, T.
      tiles: how pictures are cut.
      image: field of the picture.
      questions: field of the questions (a list, or one text).
      answers: field of their answers.
      between: text between question and answer.
    """

    length: int = 32
    tiles: Tiles = Tiles()
    image: str = "image"
    questions: str = "questions"
    answers: str = "answers"
    between: str = " "

    def __post_init__(self) -> None:
        """Checks the values."""
        at_least(4, self, "length")

    def fields(self, batch: int, tokenizer: Vocabulary) -> r.Fields:
        """Decoder fields, tiles of one picture a row, and who sees it."""
        del tokenizer
        side = self.tiles.side
        return {
            **r.decoder_fields(batch, self.length),
            "pixels": ((batch, 1, self.tiles.most, side, side, 3), "float32"),
            "grid": ((batch, 1, 2), "int32"),
            "spans": ((batch, 1, 2), "int32"),
            "id": ((batch,), "int32"),
        }

    def prepare(
        self, rows: Rows, tokenizer: Vocabulary, keep: np.ndarray, once: bool = False
    ) -> r.Examples:
        """One example a picture; in evaluation one a question."""
        pairs = [self._pairs(rows, i) for i in keep.tolist()]
        there = [n for n, own in enumerate(pairs) if own]
        if not there:
            raise UserError(f"{rows.name} has no row with a question and an answer")
        each = [(n, k) for n in there for k in range(len(pairs[n]))]
        picture = self._picture(tokenizer)

        def ids(question: str, answer: str) -> tuple[list[int], list[int]]:
            asked = [picture, *tokenizer.encode(question + self.between)]
            told = tokenizer.encode(answer)
            begin, end = ([] if i is None else [i] for i in (tokenizer.bos, tokenizer.eos))
            return [*begin, *asked], [*told, *end]

        written = r.Memory(lambda pair: ids(*pair))

        def make(slots: Sequence[int], rngs: Sequence[np.random.Generator]) -> r.Batch:
            chosen = [
                each[slot] if once else (there[slot], int(rng.integers(len(pairs[there[slot]]))))
                for slot, rng in zip(slots, rngs, strict=True)
            ]
            texts = [written(pairs[n][k]) for n, k in chosen]
            shown, texts = self._shown([int(keep[n]) for n, _ in chosen], rows, texts, picture)
            batch = r.shifted([np.concatenate(text) for text in texts], self.length)
            # What is asked is not to be learned.
            asked_B1 = np.array([len(asked) - 1 for asked, _ in texts])[:, None]
            batch["loss_weights"] *= np.arange(self.length) >= asked_B1
            return batch | shown | {"id": np.array([keep[n] for n, _ in chosen], np.int32)}

        return r.Examples(np.arange(len(each)) if once else keep[np.array(there)], make)

    def _picture(self, tokenizer: Vocabulary) -> int:
        """The id that stands for a picture."""
        return getattr(tokenizer, "control", {}).get(IMAGE, tokenizer.vocab)

    def _shown(
        self, indices: list[int], rows: Rows, texts: Sequence[Text], picture: int
    ) -> tuple[r.Batch, Sequence[Text]]:
        """What the model is shown beside the texts, and the texts with all that stands in them."""
        shapes = self.fields(len(indices), None)  # pyright: ignore[reportArgumentType]
        batch = {name: np.zeros(*shapes[name]) for name in ("pixels", "grid", "spans")}
        for b, (index, (asked, told)) in enumerate(zip(indices, texts, strict=True)):
            tiles, batch["grid"][b, 0] = self.tiles(self._image(rows, index))
            batch["pixels"][b, 0, : len(tiles)] = tiles
            [batch["spans"][b, 0]] = sees(list(asked), picture, len(asked) + len(told))
        return batch, texts

    def _image(self, rows: Rows, index: int) -> Any:
        row = light(rows, index)
        row = row if self.image in row else rows[index]
        return get(row, self.image, rows.name)

    def _pairs(self, rows: Rows, index: int) -> list[tuple[str, str]]:
        row = light(rows, index)
        asked, told = (
            texts_of(get(row, field, rows.name), rows.name)
            for field in (self.questions, self.answers)
        )
        if len(asked) != len(told):
            raise UserError(
                f"{rows.name} row {index} has {len(asked)} questions, {len(told)} answers"
            )
        return [(q, a) for q, a in zip(asked, told, strict=True) if q.strip() and a.strip()]
