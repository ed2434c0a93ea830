"""Pictures beside prompts: where each stands in its text, and what the model is shown.

A model that sees has a method `see` and its config an id `picture` that stands for one. In a text
that names no place for them, pictures come first.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from llama_jax.errors import UserError
from llama_jax.text.chat import IMAGE

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
    if not hasattr(config, "picture"):
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
    placed = [
        _placed([config.picture if i == token else i for i in ids], config.picture, len(own), begin)
        for ids, own in zip(prompts, images, strict=True)
    ]
    if not any(images):
        return Shown(placed, {})
    from llama_jax.data.tiles import Tiles, sees  # most prompts have no picture

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
