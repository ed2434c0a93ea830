"""Classification: a text, a picture, or both, and a class."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from llama_jax.checked import checked
from llama_jax.data import fields as r
from llama_jax.data.checks import at_least
from llama_jax.data.images import Pictures, light, picture_fields, stream_name
from llama_jax.data.rows import Rows, as_text, get
from llama_jax.errors import UserError, nearest
from llama_jax.text.roles import framing
from llama_jax.text.vocabulary import Vocabulary


@checked
class Labels:
    """Classification of a text, a picture, or both.

    Attributes:
      length: T of the text.
      text: field of the text, or None.
      image: field of the picture (or video), or None.
      label: field of the class: a number, or a name.
      names: the classes in order; needed if the field holds names.
      size: Y = X.
      frames: frames to take of a video; 0 for a picture.
    """

    length: int = 64
    text: str | None = "text"
    image: str | None = None
    label: str = "label"
    names: tuple[str, ...] = ()
    size: int = 64
    frames: int = 0

    def __post_init__(self) -> None:
        """Checks the values."""
        at_least(1, self, "length", "size")
        at_least(0, self, "frames")
        if self.text is None and self.image is None:
            raise UserError("Labels needs text= or image=, the field that is to be classified")

    def fields(self, batch: int, tokenizer: Vocabulary) -> r.Fields:
        """The inputs there are, and `label`."""
        del tokenizer
        return {
            **(r.text_fields(batch, self.length) if self.text else {}),
            **(picture_fields(batch, self.size, self.frames) if self.image else {}),
            "label": ((batch,), "int32"),
            "id": ((batch,), "int32"),
        }

    def prepare(
        self, rows: Rows, tokenizer: Vocabulary, keep: np.ndarray, once: bool = False
    ) -> r.Examples:
        """One example a row."""
        tokenizer = framing(tokenizer, "the task Labels")
        del once
        pictures = self.image and Pictures.of(rows, self.image, self.size, self.frames)
        framed = r.Memory(lambda text: r.framed(tokenizer.encode(text), tokenizer, self.length))

        def make(slots: Sequence[int], rngs: Sequence[np.random.Generator]) -> r.Batch:
            del rngs
            index_B = keep[np.asarray(slots)]
            texts = [light(rows, i) for i in index_B.tolist()]
            batch = {}
            if self.text:
                words = [as_text(get(row, self.text, rows.name), rows.name) for row in texts]
                batch |= r.text_batch([framed(text) for text in words], self.length)
            if pictures:
                batch[stream_name(self.frames)] = pictures(index_B)
            labels = [self._number(get(row, self.label, rows.name), rows.name) for row in texts]
            batch["label"] = np.array(labels, np.int32)
            return batch | {"id": index_B.astype(np.int32)}

        return r.Examples(keep, make)

    def _number(self, value: Any, where: str) -> int:
        if isinstance(value, str):
            if value not in self.names:
                raise UserError(
                    f"{where} has the class {value!r}; expected one of names="
                    f"{self.names!r}{nearest(value, self.names)}"
                )
            return self.names.index(value)
        number = value.item() if isinstance(value, np.generic) else value
        if isinstance(number, int) or (isinstance(number, float) and number.is_integer()):
            return int(number)
        raise UserError(
            f"{where} has the class {value!r:.60}; expected a whole number, or a name of names="
        )
