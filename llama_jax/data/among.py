"""A picture, a question and its answer as one text, for decoders that read pictures among words."""

from collections.abc import Sequence

import numpy as np

from llama_jax.checked import checked
from llama_jax.data import fields as r
from llama_jax.data.marks import Marks
from llama_jax.data.rows import Rows
from llama_jax.data.seen import Seen, Text
from llama_jax.errors import UserError, positive
from llama_jax.text.vocabulary import Vocabulary


@checked
class SeenAmong(Seen):
    """`Seen`, with ids in the text for all that its picture has (`Marks`).

    A picture of several tiles is shown once more as a whole.

    Attributes:
      tokens: vectors of a tile.
      marks: the ids.
    """

    tokens: int = 144
    marks: Marks = Marks()

    def __post_init__(self) -> None:
        """Checks the values."""
        super().__post_init__()
        positive(self, "tokens")
        if self.length < self.tokens + 4:
            raise UserError(
                f"length={self.length} has no room for a picture, whose tile alone has "
                f"tokens={self.tokens}"
            )

    @property
    def most(self) -> int:
        """Tiles of a picture at most, with the one of the whole."""
        return self.tiles.most + (self.tiles.most > 1)

    def fields(self, batch: int, tokenizer: Vocabulary) -> r.Fields:
        """Decoder fields, tiles of one picture a row, and where their vectors stand."""
        del tokenizer
        side = self.tiles.side
        return {
            **r.decoder_fields(batch, self.length),
            "pixels": ((batch, self.most, side, side, 3), "float32"),
            "at": ((batch, self.most * self.tokens), "int32"),
            "id": ((batch,), "int32"),
        }

    def _picture(self, tokenizer: Vocabulary) -> int:
        del tokenizer
        return self.marks.picture

    def _shown(
        self, indices: list[int], rows: Rows, texts: Sequence[Text], picture: int
    ) -> tuple[r.Batch, Sequence[Text]]:
        shapes = self.fields(len(indices), None)  # pyright: ignore[reportArgumentType]
        batch = {name: np.full(shapes[name][0], -1, shapes[name][1]) for name in ("pixels", "at")}
        laid: list[Text] = []
        for b, (index, (asked, told)) in enumerate(zip(indices, texts, strict=True)):
            tiles, grid = self.tiles.with_whole(self._image(rows, index))
            batch["pixels"][b] = 0
            batch["pixels"][b, : len(tiles)] = tiles
            front = list(asked).index(picture)
            run = self.marks.layout(grid, self.tokens)
            ids = [*asked[:front], *run, *asked[front + 1 :]]
            laid.append((ids, told))
            places = np.flatnonzero(np.array(ids) == self.marks.patch)
            batch["at"][b, : len(places)] = places
        return batch, laid
