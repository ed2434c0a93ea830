"""The ids that stand for a picture in a text, as Llama 4 lays them out.

    <|image_start|> tile <|tile_x_separator|> tile <|tile_y_separator|> ... <|image|> whole
    <|image_end|>

Each tile, and the whole picture made as small as one, is a run of `<|patch|>`, in whose places the
model puts what it sees. A picture of one tile is its own whole.

Source: Meta's reference (llama_models/llama4/chat_format.py and tokenizer.py).
"""

from dataclasses import astuple

from llama_jax.checked import checked
from llama_jax.errors import UserError


@checked
class Marks:
    """The ids, by default those of Meta's tokenizer.

    Attributes:
      begin: `<|image_start|>`.
      end: `<|image_end|>`.
      column: `<|tile_x_separator|>`, between two tiles of a row.
      row: `<|tile_y_separator|>`, after each row.
      picture: `<|image|>`, before the whole; in a prompt, a picture that is still to be laid out.
      patch: `<|patch|>`.
    """

    begin: int = 200_080
    end: int = 200_081
    column: int = 200_084
    row: int = 200_085
    picture: int = 200_090
    patch: int = 200_092

    def __post_init__(self):
        if min(astuple(self)) < 0 or len(set(astuple(self))) < len(astuple(self)):
            raise UserError(f"{self}: six ids of their own were expected")

    @classmethod
    def after(cls, begin: int) -> "Marks":
        """Those of a vocabulary where `<|image_start|>` has another id, in the same order."""
        own = cls()
        return cls(*(begin + id - own.begin for id in astuple(own)))

    def layout(self, grid: tuple[int, int], tokens: int) -> list[int]:
        """The ids of a picture.

        Args:
          grid: rows and columns of tiles.
          tokens: vectors of a tile.
        """
        rows, columns = grid
        tile = [self.patch] * tokens
        line = [*tile, *(columns - 1) * [self.column, *tile], self.row]
        tiles = rows * line if rows * columns > 1 else []
        return [self.begin, *tiles, self.picture, *tile, self.end]
