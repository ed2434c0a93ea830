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
from llama_jax.families.llama_meta import NAMES, TYPES
from llama_jax.families.mllama_names import alone, blocks
from llama_jax.families.mllama_parts import EXTRA, MOST_TILES, crossed, grids, tower
from llama_jax.families.names import Name, Row, Rows, of_layers, of_model, tensors
from llama_jax.families.sizes import sizes
from llama_jax.formats import pth
from llama_jax.formats.source import Source, Tensor, inside, read_json
from llama_jax.layers.block import inner
from llama_jax.models.cross_vision import CrossVision
from llama_jax.models.tiled_vision import ByShape

TEXT, SEEN = "text_model.", "vision_model.vision_encoder."
TILE, TILES, LOOKS = (
    "vision_chunk_size",
    "vision_max_num_chunks",
    "vision_num_cross_attention_layers",
)
# Of the published towers, which Meta's program has as constants: (llama3/multimodal/model.py).
HEADS, PATCH, KEPT = 16, 14, (3, 7, 15, 23, 30)
TABLES = (
    "gated_positional_embedding",
    "pre_tile_pos_embed.embedding",
    "post_tile_pos_embed.embedding",
)
AXES = {
    r"(wq|wk|wv|w1|w3)\.weight": 0,
    r"(wo|w2|c_proj)\.weight": 1,
    r"(c_fc|vision_projection)\.(weight|bias)": 0,
    r"conv1\._linear\.weight": 0,
    r"(tok_embeddings|learnable_embedding|output)\.weight": 0,
}
SPLIT = [(re.compile(rf"(.*\.)?{pattern}"), axis) for pattern, axis in AXES.items()]


def _text(rows: Rows) -> Rows:
    return tuple((ours, TEXT + theirs, axes) for ours, theirs, axes in rows)


LOOK = f"{TEXT}cross_attention_layers.{{layer}}."
CROSS: Rows = (
    ("cross_norm/scale", f"{LOOK}attention_norm.weight", "D -> D"),
    ("cross/q/w", f"{LOOK}attention.wq.weight", "(N H) D -> D N H"),
    ("cross/k/w", f"{LOOK}attention.wk.weight", "(K H) D -> D K H"),
    ("cross/v/w", f"{LOOK}attention.wv.weight", "(K H) D -> D K H"),
    ("cross/q_norm/scale", f"{LOOK}attention.q_norm.weight", "H -> H"),
    ("cross/k_norm/scale", f"{LOOK}attention.k_norm.weight", "H -> H"),
    ("cross/o/w", f"{LOOK}attention.wo.weight", "D (N H) -> N H D"),
    ("gate", f"{LOOK}gate_attn", "1 -> "),
    ("ffn_norm/scale", f"{LOOK}ffn_norm.weight", "D -> D"),
    ("ffn/gate/w", f"{LOOK}feed_forward.w1.weight", "F D -> D F"),
    ("ffn/up/w", f"{LOOK}feed_forward.w3.weight", "F D -> D F"),
    ("ffn/down/w", f"{LOOK}feed_forward.w2.weight", "D F -> F D"),
    ("ffn_gate", f"{LOOK}gate_ffwd", "1 -> "),
)
TOWER: Rows = (
    ("patches/w", f"{SEEN}conv1._linear.weight", "D (R X Y) -> (R X Y) D"),
    ("first", f"{SEEN}class_embedding", "D -> D"),
    ("place", f"{SEEN}positional_embedding", "P D -> P D"),
    ("places", f"{SEEN}{TABLES[0]}", "A M P D -> A M P D"),
    ("places_gate", f"{SEEN}gated_positional_embedding_gate", "1 -> "),
    ("before_gate", f"{SEEN}pre_tile_pos_embed.gate", "1 -> "),
    ("after_gate", f"{SEEN}post_tile_pos_embed.gate", "1 -> "),
    ("pre_norm/scale", f"{SEEN}ln_pre.weight", "D -> D"),
    ("pre_norm/bias", f"{SEEN}ln_pre.bias", "D -> D"),
    ("post_norm/scale", f"{SEEN}ln_post.weight", "D -> D"),
    ("post_norm/bias", f"{SEEN}ln_post.bias", "D -> D"),
)
OF_TILES: Rows = (
    ("before", f"{SEEN}{TABLES[1]}", "A M P D -> A M P D"),
    ("after", f"{SEEN}{TABLES[2]}", "A M P D -> A M P D"),
)
OUT: Rows = (
    ("out/w", "vision_model.vision_projection.weight", "D A -> A D"),
    ("out/b", "vision_model.vision_projection.bias", "D -> D"),
)


def _block(where: str, gated: bool) -> Rows:
    at = f"{SEEN}{where}.resblocks.{{layer}}."
    rows: list[Row] = [
        (f"{ours}/{part}", f"{at}{theirs}.{name}", "D -> D")
        for ours, theirs in (("attn_norm", "ln_1"), ("ffn_norm", "ln_2"))
        for part, name in (("scale", "weight"), ("bias", "bias"))
    ]
    rows += [(f"attn/{n}/w", f"{at}attn.w{n}.weight", "(N H) D -> D N H") for n in "qkv"]
    rows += [
        ("attn/o/w", f"{at}attn.wo.weight", "D (N H) -> N H D"),
        ("ffn/up/w", f"{at}mlp.c_fc.weight", "F D -> D F"),
        ("ffn/up/b", f"{at}mlp.c_fc.bias", "F -> F"),
        ("ffn/down/w", f"{at}mlp.c_proj.weight", "D F -> F D"),
        ("ffn/down/b", f"{at}mlp.c_proj.bias", "D -> D"),
    ]
    gates: Rows = (("attn_gate", f"{at}gate_attn", "1 -> "), ("ffn_gate", f"{at}gate_ffn", "1 -> "))
    return (*rows, *(gates if gated else ()))


@dataclass(frozen=True)
class MetaNames:
    """Meta's names of a decoder with layers that look, and of its tower; see `names.Notation`."""

    interleaved: bool = True

    @property
    def ends(self) -> tuple[str, str]:
        """The names of the embedding and of the output layer."""
        return f"{TEXT}tok_embeddings.weight", f"{TEXT}output.weight"

    def names(self, model: CrossVision) -> list[Name]:
        """Every tensor of a model; see `names.tensors`."""
        decoder, vision = model.decoder, model.vision
        letters = sizes(alone(decoder)).letters
        looks = [block.attention is None for block in blocks(decoder.stack)]
        every = looks * decoder.stack.repeats

        def rows(part: int) -> Rows:
            return CROSS if looks[part] else _text((*NAMES.attention, *NAMES.ffn))

        found = of_model(_text(NAMES.embed), letters, "decoder")
        extra: Rows = (("w", f"{TEXT}learnable_embedding.weight", "V D -> V D"),)
        found += of_model(extra, letters | {"V": model.extra}, "extra")
        found += of_layers(
            *(decoder.stack, rows, lambda part: letters, "decoder/stack"),
            number=lambda i: every[:i].count(every[i]),
        )
        found += of_model(_text(NAMES.out), letters, "decoder")
        rows_of, _ = vision.tables.shape(vision.tiles)
        seen = {"D": vision.width, "R": 3, "X": vision.patch, "Y": vision.patch, "A": rows_of}
        seen |= {"M": vision.tiles, "P": vision.tokens}
        found += of_model(TOWER, seen, "vision")
        found += of_model(OF_TILES, seen | {"P": 1}, "vision")
        for name, theirs in (("local", "transformer"), ("across", "global_transformer")):
            stack = getattr(vision, name)
            attention, ffn = inner(blocks(stack)[0].attention), inner(blocks(stack)[0].ffn)
            own = {"D": vision.width, "N": attention.heads, "H": attention.head_dim}
            own |= {"F": ffn.hidden}
            layer = _block(theirs, gated=name == "across")
            found += of_layers(
                stack, lambda part, r=layer: r, lambda part, o=own: o, f"vision/{name}"
            )
        width = vision.width * (len(vision.kept) + 1)
        return found + of_model(OUT, {"D": vision.out, "A": width}, "vision")


@dataclass(frozen=True)
class MllamaMeta:
    """How Llama 3.2-Vision is written down in Meta's folders; see `base.Meta`."""

    table: MetaNames = MetaNames()
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
    for name in {one.tensor for one in tensors(model, MetaNames())} & found.keys():
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
