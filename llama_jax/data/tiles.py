"""A picture of any shape, cut into square tiles without distorting it, as Llama 3.2 and 4 see it.

    picture --> the grid of tiles that suits it best --> resized to fit, at the top left of a black
    canvas --> tiles, row by row

Source: Meta's reference (llama_models/llama3/multimodal/image_transform.py); Pillow resizes.
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from llama_jax.checked import checked
from llama_jax.data.images import decode
from llama_jax.errors import positive
from llama_jax.limits import check_limits

# Of CLIP's training pictures.
MEAN = (0.48145466, 0.4578275, 0.40821073)
DEVIATION = (0.26862954, 0.26130258, 0.27577711)
HALF = (0.5, 0.5, 0.5)  # Llama 4's mean, and deviation


@checked
class Tiles:
    """How pictures are cut.

    Attributes:
      side: pixels a side of a tile.
      most: tiles of a picture at most.
      mean: what is subtracted of each colour, in 0 to 1.
      deviation: what each colour is divided by then.
    """

    side: int = 560
    most: int = 4
    mean: tuple[float, float, float] = MEAN
    deviation: tuple[float, float, float] = DEVIATION

    def __post_init__(self):
        positive(self, "side", "most")
        check_limits(self)

    def __call__(self, image: Any) -> tuple[np.ndarray, tuple[int, int]]:
        """The tiles of a picture, float32 [M,Y,X,3], and how many rows and columns they make.

        Args:
          image: what `images.decode` takes.

        Raises:
          UserError: it is no picture that can be read.
        """
        pixels_YXR = decode(image)
        height, width = pixels_YXR.shape[:2]
        rows, columns = self.grid(height, width)
        canvas = np.zeros((rows * self.side, columns * self.side, 3), np.uint8)
        y, x = self._fitted(height, width, rows, columns)
        canvas[:y, :x] = _resized(pixels_YXR, y, x)
        shape = (rows, self.side, columns, self.side, 3)
        tiles = canvas.reshape(shape).swapaxes(1, 2).reshape(-1, self.side, self.side, 3)
        return self._normalised(tiles), (rows, columns)

    def with_whole(self, image: Any) -> tuple[np.ndarray, tuple[int, int]]:
        """As a call; after several tiles comes the whole picture, squeezed into one more."""
        pixels_YXR = decode(image)
        tiles, grid = self(pixels_YXR)
        if len(tiles) == 1:
            return tiles, grid
        whole = self._normalised(_resized(pixels_YXR, self.side, self.side))
        return np.concatenate([tiles, whole[None]]), grid

    def _normalised(self, pixels: np.ndarray) -> np.ndarray:
        # In float32, in the order of torchvision's ToTensor and Normalize.
        scaled = pixels.astype(np.float32) / np.float32(255)
        mean, deviation = np.array([self.mean, self.deviation], np.float32)
        return (scaled - mean) / deviation

    def grid(self, height: int, width: int) -> tuple[int, int]:
        """Rows and columns of tiles for a picture of so many pixels.

        The one that enlarges least, or shrinks least if none is large enough; of equal ones that
        with the fewest tiles.
        """
        shapes = grids(self.most)
        # In float32, as the reference: equal factors must be equal there too.
        rows, columns = np.array(shapes).T * self.side
        factors = np.minimum(
            columns.astype(np.float32) / np.float32(width),
            rows.astype(np.float32) / np.float32(height),
        )
        large = factors[factors >= 1]
        best = large.min() if len(large) else factors.max()
        same = [shape for shape, factor in zip(shapes, factors, strict=True) if factor == best]
        return min(same, key=math.prod)

    def _fitted(self, height: int, width: int, rows: int, columns: int) -> tuple[int, int]:
        """The pixels of the picture on its canvas; none is enlarged beyond a tile."""
        most_y = min(max(height, self.side), rows * self.side)
        most_x = min(max(width, self.side), columns * self.side)
        by_x, by_y = most_x / width, most_y / height
        if by_x < by_y:
            return max(min(math.floor(height * by_x), most_y), 1), most_x
        return most_y, max(min(math.floor(width * by_y), most_x), 1)


def _resized(pixels_YXR: np.ndarray, height: int, width: int) -> np.ndarray:
    from PIL import Image

    image = Image.fromarray(pixels_YXR)
    return np.asarray(image.resize((width, height), Image.Resampling.BILINEAR))


def grids(most: int) -> list[tuple[int, int]]:
    """Every (rows, columns) of at most so many tiles, in the order in which ties are settled."""
    found: dict[float, list[tuple[int, int]]] = {}
    for count in range(most, 0, -1):
        for columns in range(1, count + 1):
            if count % columns == 0:
                found.setdefault(columns / (count // columns), []).append(
                    (count // columns, columns)
                )
    return [shape for group in found.values() for shape in group]


def sees(ids: Sequence[int], picture: int, length: int) -> list[tuple[int, int]]:
    """Of each picture of a text the tokens that see it, first and end.

    A picture is seen from its own place up to the next one, the last one to the end; pictures that
    follow each other directly are all seen up to the end of the last of them.

    Args:
      ids: the tokens.
      picture: the id that stands for one.
      length: where the text ends, with what is still to be written.
    """
    places = [place for place, id in enumerate(ids) if id == picture]
    ends = [*places[1:], length]
    spans = list(zip(places, ends, strict=False))
    for i in reversed(range(len(spans) - 1)):
        if spans[i][1] == spans[i][0] + 1:
            spans[i] = (spans[i][0], spans[i + 1][1])
    return spans
