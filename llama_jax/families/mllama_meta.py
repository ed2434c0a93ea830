"""Meta's folders of Llama 3.2-Vision: params.json and consolidated.NN.pth, in any number of files.

Layers of self-attention and layers that look at pictures are numbered apart. Tables of positions by
a tile's row and column are read as Hugging Face has them, by the grid of the picture.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from llama_jax.errors import FormatError, UserError
from llama_jax.families import llama_params
from llama_jax.families.llama_meta import TYPES
from llama_jax.families.mllama_meta_names import META, SEEN, TABLES, TEXT
from llama_jax.families.mllama_names import MllamaNames
from llama_jax.families.mllama_parts import EXTRA, MOST_TILES, crossed, grids, tower
from llama_jax.families.names import tensors
from llama_jax.formats import pth
from llama_jax.formats.source import Source, Tensor, inside, read_json
from llama_jax.models.cross_vision import CrossVision
from llama_jax.models.tiled_vision import ByShape

TILE, TILES, LOOKS = (
    "vision_chunk_size",
    "vision_max_num_chunks",
    "vision_num_cross_attention_layers",
)
# Of the published towers, which Meta's program has as constants: (llama3/multimodal/model.py).
HEADS, PATCH, KEPT = 16, 14, (3, 7, 15, 23, 30)
AXES = {
    r"(wq|wk|wv|w1|w3)\.weight": 0,
    r"(wo|w2|c_proj)\.weight": 1,
    r"(c_fc|vision_projection)\.(weight|bias)": 0,
    r"conv1\._linear\.weight": 0,
    r"(tok_embeddings|learnable_embedding|output)\.weight": 0,
}
SPLIT = [(re.compile(rf"(.*\.)?{pattern}"), axis) for pattern, axis in AXES.items()]


@dataclass(frozen=True)
class MllamaMeta:
    """How Llama 3.2-Vision is written down in Meta's folders; see `base.Meta`."""

    table: MllamaNames = META
    assumed: tuple[float, float | None, float] = (500_000.0, None, 4.0)

    def claims(self, params: Mapping[str, Any]) -> bool:
        """Whether a params.json is of this family."""
        return bool(params.get(LOOKS))

    def open(
        self, folder: str | Path, pickle: bool = False
    ) -> tuple[CrossVision, Source, tuple[str, ...]]:
        """The model of a folder, its tensors, and the names of those that are not read.

        Raises:
          UserError: .pth files may not be opened, or torch is missing or too old.
          FormatError: a file that is missing or is not what it should be.
        """
        place = Path(folder)
        params = read_json(inside(place, "params.json"))
        files = pth.files(place)
        shards = pth.load(files, pickle)
        axes = {name: _axis(name) if len(shards) > 1 else None for name in shards[0]}
        shapes = {name: pth.whole(name, shards, axis) for name, axis in axes.items()}
        model = _model(params, shapes, place / "params.json")
        unused = tuple(name for name in shapes if name.endswith("rope.freqs"))
        return model, _source(place, files, shards, axes, shapes, model), unused

    def renamed(self, model: CrossVision, name: str, tensor: np.ndarray) -> tuple[str, np.ndarray]:
        """`verify` reads language models alone.

        Raises:
          UserError: always.
        """
        raise UserError("the tensors of a model that sees are not compared with transformers'")


def _model(params: Mapping[str, Any], shapes: Mapping[str, tuple], place: Path) -> CrossVision:
    def shape(name: str, axes: int) -> tuple[int, ...]:
        if len(found := shapes.get(name, ())) != axes:
            raise FormatError(f"{place}: tensor {name!r} is missing; is this a Llama 3.2-Vision?")
        return found

    text = {name: value for name, value in params.items() if not name.startswith("vision_")}
    own = llama_params.Shapes(
        vocab=shape(f"{TEXT}tok_embeddings.weight", 2)[0],
        hidden=shape(f"{TEXT}layers.0.feed_forward.w1.weight", 2)[0],
        output=True,
    )
    llama = llama_params.model(text, own, place)
    layers, looks = llama.stack.layers, params.get(LOOKS)
    if type(looks) is not int or not 0 < looks <= layers:
        raise FormatError(f"{place}: {LOOKS}={looks!r:.60}; 1 to {layers} was expected")
    # Spread from the last layer on; each comes before a layer of self-attention.
    before = sorted(range(layers)[::-1][:: -(-layers // looks)][:looks])
    decoder = crossed(llama, [i + n for n, i in enumerate(before)])
    tile, tiles = params.get(TILE, -1), params.get(TILES, 4)
    whole = type(tile) is int and type(tiles) is int
    if not whole or tile < PATCH or tile % PATCH or not 1 <= tiles <= MOST_TILES:
        raise FormatError(
            f"{place}: {TILE}={tile!r:.40} and {TILES}={tiles!r:.40}; a multiple of {PATCH} and 1 "
            f"to {MOST_TILES} tiles were expected"
        )
    width = shape(f"{SEEN}class_embedding", 1)[0]
    counts = {
        where: sum(f"{SEEN}{where}.resblocks.{i}.ln_1.weight" in shapes for i in range(1000))
        for where in ("transformer", "global_transformer")
    }
    places = shape(f"{SEEN}positional_embedding", 2)[0]
    if places != (tile // PATCH) ** 2 + 1:
        raise FormatError(
            f"{place}: {TILE}={tile} has {(tile // PATCH) ** 2 + 1} tokens and the file has "
            f"positions for {places}; tables of another size are not resized"
        )
    vision = tower(
        width,
        llama.width,
        heads=HEADS,
        hidden=shape(f"{SEEN}transformer.resblocks.0.mlp.c_fc.weight", 2)[0],
        layers=(counts["transformer"], counts["global_transformer"]),
        kept=KEPT,
        sizes=(tile, PATCH, tiles),
        tables=ByShape(grids(tiles)),
    )
    return CrossVision(decoder, vision, EXTRA)


def _source(place, files, shards, axes, shapes, model: CrossVision) -> Source:
    tables, found = {f"{SEEN}{name}" for name in TABLES}, {}
    every = model.vision.tables.grids  # pyright: ignore[reportAttributeAccessIssue]
    for name, shape in shapes.items():
        kind = str(shards[0][name].dtype).removeprefix("torch.")
        if name in tables and len(shape) == 4:
            shape = (len(every) + 1, model.vision.tiles, *shape[2:])
        found[name] = Tensor(shape, kind, files[0])
    for name in {one.tensor for one in tensors(model, META)} & found.keys():
        if found[name].dtype not in TYPES:
            raise FormatError(f"{files[0]}: tensor {name!r} is of type {found[name].dtype}")

    def read(name: str) -> np.ndarray:
        tensor = pth.read(name, shards, axes[name])
        return by_shape(tensor, every, model.vision.tiles) if name in tables else tensor

    return Source(place, found, read)


def by_shape(table: np.ndarray, every: tuple[tuple[int, int], ...], tiles: int) -> np.ndarray:
    """A table [rows, columns, P, D] as one of each grid's tiles, [grids + 1, tiles, P, D].

    The first entry, of no grid, and tiles that a grid lacks are 0.
    """
    found = np.zeros((len(every) + 1, tiles, *table.shape[2:]), table.dtype)
    for i, (rows, columns) in enumerate(every, 1):
        found[i, : rows * columns] = table[:rows, :columns].reshape(-1, *table.shape[2:])
    return found


def _axis(name: str) -> int | None:
    """The axis along which a tensor is split over the files, or None."""
    return next((axis for pattern, axis in SPLIT if pattern.fullmatch(name)), None)
