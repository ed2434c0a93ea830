"""Tasks of drawing: pictures alone, for the image tokenizer; a text and the picture to draw."""

from collections.abc import Sequence

import numpy as np

from llama_jax.checked import checked
from llama_jax.data import fields as r
from llama_jax.data.checks import at_least
from llama_jax.data.images import Pictures, light, picture_fields
from llama_jax.data.rows import Rows, get, texts_of
from llama_jax.errors import UserError
from llama_jax.messages import cut
from llama_jax.text.tokenizer import Tokenizer, trained_here
from llama_jax.text.vocabulary import Vocabulary


@checked
class Pixels:
    """A picture and nothing else.

    Attributes:
      size: Y = X.
      image: field of the picture.
    """

    size: int = 64
    image: str = "image"

    def __post_init__(self) -> None:
        """Checks the values."""
        at_least(1, self, "size")

    def fields(self, batch: int, tokenizer: Vocabulary) -> r.Fields:
        """The picture."""
        del tokenizer
        return {**picture_fields(batch, self.size), "id": ((batch,), "int32")}

    def prepare(
        self, rows: Rows, tokenizer: Vocabulary, keep: np.ndarray, once: bool = False
    ) -> r.Examples:
        """One example a row."""
        del tokenizer, once
        pictures = Pictures.of(rows, self.image, self.size)

        def make(slots: Sequence[int], rngs: Sequence[np.random.Generator]) -> r.Batch:
            del rngs
            index_B = keep[np.asarray(slots)]
            return {"image": pictures(index_B), "id": index_B.astype(np.int32)}

        return r.Examples(keep, make)


@checked
class Drawing:
    """A caption `<cls> instruction caption <sep>`, and the picture to draw after it.

    The words of the picture are made by the model's image tokenizer in the step; `tokens` is the
    one token that writing begins with.

    Attributes:
      length: T of the text.
      instruction: what stands in front of each caption.
      size: Y = X.
      image: field of the picture.
      caption: field of the caption, or of several (one is drawn; the first in evaluation).
    """

    length: int = 24
    instruction: str = "draw: "
    size: int = 64
    image: str = "image"
    caption: str = "caption"

    def __post_init__(self) -> None:
        """Checks the values."""
        at_least(1, self, "length", "size")

    def fields(self, batch: int, tokenizer: Vocabulary) -> r.Fields:
        """Text, picture and the first token."""
        del tokenizer
        return {
            **r.text_fields(batch, self.length),
            **picture_fields(batch, self.size),
            "tokens": ((batch, 1), "int32"),
            "id": ((batch,), "int32"),
        }

    def prepare(
        self, rows: Rows, tokenizer: Vocabulary, keep: np.ndarray, once: bool = False
    ) -> r.Examples:
        """One example a row."""
        ours = trained_here(tokenizer, "the task Drawing")
        pictures = Pictures.of(rows, self.image, self.size)
        frame = r.Memory(
            lambda text: r.framed(ours.encode(self.instruction + text), ours, self.length)
        )

        def make(slots: Sequence[int], rngs: Sequence[np.random.Generator]) -> r.Batch:
            index_B = keep[np.asarray(slots)]
            chosen = []
            for i, rng in zip(index_B.tolist(), rngs, strict=True):
                every = texts_of(get(light(rows, i), self.caption, rows.name), rows.name)
                if not every:
                    raise UserError(
                        f"{rows.name} row {i} has no caption in {self.caption!r}; drop such rows"
                    )
                chosen.append(frame(every[0 if once else int(rng.integers(len(every)))]))
            return {
                **r.text_batch(chosen, self.length),
                "image": pictures(index_B),
                "tokens": np.full((len(index_B), 1), ours.bos, np.int32),
                "id": index_B.astype(np.int32),
            }

        return r.Examples(keep, make)

    def wished(self, texts: Sequence[str], tokenizer: Tokenizer) -> r.Batch:
        """Captions as the model reads them, without pictures: `text` and `text_valid`.

        Raises:
          UserError: one is empty, or longer than what the model was trained with.
        """
        read = []
        for text in texts:
            if not text.strip():
                raise UserError(
                    "there is nothing to draw in an empty text; try 'a small blue circle at the "
                    "top left'"
                )
            ids, most = tokenizer.encode(self.instruction + text.strip()), self.length - 2
            if len(ids) > most:
                raise UserError(
                    f"the text {cut(text, 40)!r} has {len(ids)} tokens with {self.instruction!r} "
                    f"in front; the model was trained with up to {most}; try a shorter one"
                )
            read.append(r.framed(ids, tokenizer, self.length))
        return r.text_batch(read, self.length)
