"""Pictures beside prompts: where each stands in its text, and what the model is shown.

A model that sees has a method `see`, and its config an id `picture` that stands for one. In a text
that names no place for them, pictures come first. How a kind of model is shown pictures is an entry
of `LAYOUTS`.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from llama_jax.errors import UserError
from llama_jax.text.chat import IMAGE

if TYPE_CHECKING:  # most models see nothing, and most prompts have no picture
    from llama_jax.models.cross_vision import CrossVision
    from llama_jax.models.early_vision import EarlyVision

END = 2**30  # beyond every text


@dataclass(frozen=True)
class Shown:
    """Prompts with places for their pictures, and the arguments of the model's `see`.

    Attributes:
      prompts: ids, a row each.
      seen: arrays by name; empty without pictures.
    """

    prompts: list[list[int]]
    seen: dict[str, np.ndarray]


def show(
    config: Any,
    prompts: Sequence[Sequence[int]],
    images: Sequence[Sequence[Any]],
    begin: int | None = None,
    token: int | None = None,
) -> Shown:
    """Lays out pictures for prompts.

    Args:
      config: the model's.
      prompts: ids of each.
      images: each prompt's pictures, as `images.decode` takes them, in their order.
      begin: what begins every text; pictures without a place come after it.
      token: the tokenizer's id of a picture, if it is another than the model's.

    Raises:
      UserError: a model that sees nothing, another number of places than of pictures, or a picture
        that cannot be read.
    """
    layout = LAYOUTS.get(type(config).__name__)
    if layout is None:
        if any(images):
            raise UserError(
                f"{sum(map(len, images))} pictures came and this model reads text only; try one "
                "that has a vision tower"
            )
        return Shown([list(ids) for ids in prompts], {})
    if len(images) != len(prompts):
        raise UserError(
            f"pictures of {len(images)} prompts came for {len(prompts)}; expected a list of "
            "pictures for each prompt"
        )
    named = [[config.picture if i == token else i for i in ids] for ids in prompts]
    return layout(config, named, images, begin)


def crossed(
    config: "CrossVision",
    prompts: Sequence[list[int]],
    images: Sequence[Sequence[Any]],
    begin: int | None,
) -> Shown:
    """A place is one id; the tiles of each picture, and the positions that see it, lie beside."""
    placed = [
        _placed(ids, config.picture, len(own), begin)
        for ids, own in zip(prompts, images, strict=True)
    ]
    if not any(images):
        return Shown(placed, {})
    from llama_jax.data.tiles import Tiles, sees

    most, vision = max(map(len, images)), config.vision
    cut = Tiles(vision.tile, vision.tiles)
    shape = (len(placed), most, vision.tiles, vision.tile, vision.tile, 3)
    pixels = np.zeros(shape, np.float32)
    grid = np.ones((len(placed), most, 2), np.int32)
    spans = np.zeros((len(placed), most, 2), np.int32)
    for row, (ids, own) in enumerate(zip(placed, images, strict=True)):
        for i, (image, span) in enumerate(zip(own, sees(ids, config.picture, END), strict=True)):
            tiles, grid[row, i] = cut(image)
            pixels[row, i, : len(tiles)] = tiles
            spans[row, i] = span
    return Shown(placed, {"pixels": pixels, "grid_BI2": grid, "spans_BI2": spans})


def among(
    config: "EarlyVision",
    prompts: Sequence[list[int]],
    images: Sequence[Sequence[Any]],
    begin: int | None,
) -> Shown:
    """A place becomes ids for all that the picture has; the tiles of all pictures lie beside.

    A prompt with ids of patches has been laid out already, and is taken as it is.
    """
    from llama_jax.data.tiles import HALF, Tiles

    vision, marks = config.vision, config.marks
    cut = Tiles(vision.tile, vision.tiles, HALF, HALF)
    rows: list[list[int]] = []
    shown: list[list[np.ndarray]] = []
    for ids, own in zip(prompts, images, strict=True):
        seen = [cut.with_whole(image) for image in own]
        shown.append([tile for tiles, _ in seen for tile in tiles])
        runs = [marks.layout(grid, vision.tokens) for _, grid in seen]
        if marks.patch in ids:
            _check_patches(ids.count(marks.patch), len(shown[-1]), vision.tokens)
            rows.append(ids)
        else:
            places = iter(runs)
            placed = _placed(ids, marks.picture, len(own), begin)
            rows.append(
                [i for id in placed for i in (next(places) if id == marks.picture else [id])]
            )
    if not any(images):
        return Shown(rows, {})
    most = max(map(len, shown))
    pixels = np.zeros((len(rows), most, vision.tile, vision.tile, 3), np.float32)
    at = np.full((len(rows), most * vision.tokens), -1, np.int32)
    for row, (ids, tiles) in enumerate(zip(rows, shown, strict=True)):
        for i, tile in enumerate(tiles):
            pixels[row, i] = tile
        at[row, : len(tiles) * vision.tokens] = np.flatnonzero(np.array(ids) == marks.patch)
    return Shown(rows, {"pixels": pixels, "at_BS": at})


# The type of a model's config, by name -> how its prompts are shown pictures.
LAYOUTS: Mapping[str, Callable[..., Shown]] = {"CrossVision": crossed, "EarlyVision": among}


def _placed(ids: list[int], picture: int, count: int, begin: int | None) -> list[int]:
    """The ids with as many places as there are pictures."""
    places = ids.count(picture)
    if places == 0:
        front = 1 if ids[:1] == [begin] else 0
        return [*ids[:front], *[picture] * count, *ids[front:]]
    if places != count:
        raise UserError(
            f"the prompt has {places} places for pictures ({IMAGE}) and {count} pictures came; "
            "expected as many of one as of the other"
        )
    return ids


def _check_patches(patches: int, tiles: int, tokens: int) -> None:
    if patches != tiles * tokens:
        raise UserError(
            f"the prompt has {patches} places for patches (<|patch|>) and the pictures that came "
            f"have {tiles} tiles of {tokens}; expected as many of one as of the other, or "
            f"{IMAGE} in the place of each picture"
        )
