"""Llama 3.2-Vision's config.json: a text model with cross-attention layers, and a tower."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from llama_jax.errors import FormatError, UserError
from llama_jax.families.fused import parts
from llama_jax.families.huggingface import Fields, HuggingFace
from llama_jax.families.huggingface_numbers import LARGEST, bad, positive, size
from llama_jax.families.mllama_huggingface_names import HUGGING_FACE
from llama_jax.families.mllama_names import MllamaNames, alone, blocks
from llama_jax.families.mllama_parts import EXTRA, MOST_TILES, crossed, grids, tower
from llama_jax.families.names import tensors
from llama_jax.formats.source import Source
from llama_jax.layers.stack import Stack
from llama_jax.models.cross_vision import CrossVision
from llama_jax.models.decoder import Decoder
from llama_jax.models.tiled_vision import ByShape, TiledVision
from llama_jax.trees import difference

TEXT, VISION, CROSS = "text_config", "vision_config", "cross_attention_layers"
KEPT, GRIDS = "intermediate_layers_indices", "supported_aspect_ratios"
KNOWN_SEEN = {
    *("attention_heads", "hidden_act", "hidden_size", "image_size", "initializer_range"),
    *(KEPT, GRIDS, "intermediate_size", "max_num_tiles", "model_type", "norm_eps"),
    *("num_channels", "num_global_layers", "num_hidden_layers", "patch_size", "vision_output_dim"),
}
TEXT_WORDS = HuggingFace(
    "mllama_text_model",
    "MllamaForCausalLM",
    defaults={"rms_norm_eps": 1e-5, "rope_theta": 5e5, "max_position_embeddings": 131_072},
    known=(CROSS, "dropout"),
)


@dataclass(frozen=True)
class Mllama:
    """How Llama 3.2-Vision is written down in Hugging Face's folders; as `HuggingFace`."""

    model_type: str = "mllama"
    architecture: str = "MllamaForConditionalGeneration"
    table: MllamaNames = HUGGING_FACE

    @property
    def defaults(self) -> Mapping[str, Any]:
        """Values of fields of the text that are absent."""
        return TEXT_WORDS.defaults

    def claims(self, config: Mapping[str, Any]) -> bool:
        """Whether a config.json names this family."""
        return config.get("model_type") == self.model_type

    def spoken(self, config: Mapping[str, Any]) -> Fields:
        """The part of a config.json that names the ids of a tokenizer."""
        return {**config, **_part(dict(config), TEXT, "config.json")}

    def with_ids(self, config: Fields, ids: Mapping[str, Any]) -> Fields:
        """A config.json with the ids of a tokenizer, where `spoken` finds them."""
        # transformers takes no null for the first two, and none beyond the table for the third.
        known = {name: id for name, id in ids.items() if id is not None or name == "pad_token_id"}
        return config | {TEXT: config[TEXT] | known}

    def source(self, model: CrossVision, source: Source, config: Mapping[str, Any]) -> Source:
        """A folder's tensors, under the names of the table.

        Folders of transformers from 4.52 on may hold "model.language_model." and the like.
        """
        del config
        spelt = {_older(name): name for name in source.tensors}
        there = {name: source.tensors[theirs] for name, theirs in spelt.items()}
        renamed = Source(source.place, there, lambda name: source.read(spelt[name]))
        return parts(renamed, tensors(model, self.table))

    def unused(self, model: CrossVision, names: Iterable[str]) -> tuple[str, ...]:
        """Tensors that a checkpoint may have and that are not read: none."""
        del model, names
        return ()

    def model(self, config: Fields, place: Path | str = "config.json") -> CrossVision:
        """The model that a config.json describes.

        Raises:
          FormatError: a missing or impossible number, or a feature that is not known.
        """
        if (kind := config.get("model_type")) != self.model_type:
            raise bad(place, "model_type", kind, repr(self.model_type))
        text, seen = (_part(config, name, place) for name in (TEXT, VISION))
        try:
            decoder = _decoder(text, f"{place}, {TEXT}")
            vision = _vision(seen, decoder.width, f"{place}, {VISION}")
            made = CrossVision(decoder, vision, EXTRA)
        except UserError as error:
            ours = isinstance(error, FormatError)
            raise (error if ours else FormatError(f"{place}: {error}")) from None
        if config.get("image_token_index", made.picture) != made.picture:
            raise bad(place, "image_token_index", config["image_token_index"], f"{made.picture}")
        return made

    def config(self, model: CrossVision, dtype: str = "float32") -> Fields:
        """The config.json of a model, but for the ids of its tokenizer."""
        vision, pattern = model.vision, blocks(model.decoder.stack)
        crossed = [
            i for i, block in enumerate(pattern * model.decoder.stack.repeats) if block.cross
        ]
        text = TEXT_WORDS.config(alone(model.decoder), dtype)
        text |= {CROSS: crossed, "num_hidden_layers": model.decoder.stack.layers}
        heads, hidden = _sizes(vision.local)
        every = vision.tables.grids if isinstance(vision.tables, ByShape) else ()
        del text["architectures"]
        return {
            "architectures": [self.architecture],
            "model_type": self.model_type,
            "torch_dtype": dtype,
            "image_token_index": model.picture,
            TEXT: text,
            VISION: {
                "model_type": "mllama_vision_model",
                "hidden_size": vision.width,
                "hidden_act": "gelu",
                "num_hidden_layers": vision.local.layers,
                "num_global_layers": vision.across.layers,
                "attention_heads": heads,
                "num_channels": 3,
                "intermediate_size": hidden,
                "vision_output_dim": vision.width * (len(vision.kept) + 1),
                "image_size": vision.tile,
                "patch_size": vision.patch,
                "norm_eps": vision.norm.eps,
                "max_num_tiles": vision.tiles,
                KEPT: [*vision.kept],
                GRIDS: [list(grid) for grid in every],
                "initializer_range": 0.02,
            },
        }

    def lacks(self, model: Any) -> str | None:
        """What a model has that its config.json would not say, or None."""
        if not isinstance(model, CrossVision):
            return f"the model is a {type(model).__name__}"
        if not isinstance(model.vision.tables, ByShape):
            return "model.vision.tables is ByGrid()"
        made = self.model(self.config(model))
        return difference(_plain(model), _plain(made), "model")


def _older(name: str) -> str:
    """A tensor's name as published folders have it."""
    for now, then in (
        ("model.language_model.", "language_model.model."),
        ("model.vision_model.", "vision_model."),
        ("model.multi_modal_projector.", "multi_modal_projector."),
        ("lm_head.", "language_model.lm_head."),
    ):
        if name.startswith(now):
            return then + name.removeprefix(now)
    return name


def _plain(model: CrossVision) -> CrossVision:
    """The model without what makes no difference to its numbers."""
    decoder = replace(model.decoder, stack=_whole(model.decoder.stack))
    vision = replace(
        model.vision, local=_whole(model.vision.local), across=_whole(model.vision.across)
    )
    return replace(model, decoder=decoder, vision=vision)


def _whole(stack: Stack) -> Stack:
    return Stack(stack.pattern * stack.repeats)


def _part(config: Fields, name: str, place: Path | str) -> Fields:
    if not isinstance(part := config.get(name), dict):
        raise FormatError(f"{place}: {name} is missing; it keeps the sizes of a part of the model")
    return part


def _decoder(text: Fields, place: str) -> Decoder:
    layers = size(text, place, "num_hidden_layers", 10_000)
    looks: Any = text.get(CROSS)
    whole = isinstance(looks, list) and all(type(i) is int for i in looks)
    if not whole or not {*looks} <= {*range(layers)} or not looks:
        raise bad(place, CROSS, looks, f"a list of layers below {layers}")
    own = layers - len({*looks})
    if own < 1:
        raise bad(place, CROSS, looks, "fewer than all layers")
    return crossed(TEXT_WORDS.model(text | {"num_hidden_layers": own}, place), looks)


def _vision(seen: Fields, out: int, place: str) -> TiledVision:
    for name in seen:
        if name not in KNOWN_SEEN and not name.startswith("_") and seen[name] not in (None, False):
            raise bad(
                place, name, seen[name], "a file without this field, whose meaning is not known,"
            )
    if seen.get("hidden_act", "gelu") != "gelu":
        raise bad(place, "hidden_act", seen["hidden_act"], "'gelu'")
    if seen.get("num_channels", 3) != 3:
        raise bad(place, "num_channels", seen["num_channels"], "3")
    width, heads, hidden = (
        size(seen, place, name) for name in ("hidden_size", "attention_heads", "intermediate_size")
    )
    local, across = (
        size(seen, place, name, 10_000) for name in ("num_hidden_layers", "num_global_layers")
    )
    if width % heads:
        raise bad(place, "attention_heads", heads, f"a divisor of hidden_size={width}")
    kept = seen.get(KEPT)
    if not isinstance(kept, list) or not all(type(i) is int and 0 < i < local for i in kept):
        raise bad(place, KEPT, kept, f"a list of layers from 1 to {local - 1}")
    if seen.get("vision_output_dim", width * (len(kept) + 1)) != width * (len(kept) + 1):
        raise bad(
            place, "vision_output_dim", seen["vision_output_dim"], str(width * (len(kept) + 1))
        )
    eps = positive(seen.get("norm_eps", 1e-5), "norm_eps", place)
    return tower(
        width,
        out,
        heads=heads,
        hidden=hidden,
        layers=(local, across),
        kept=tuple(kept),
        sizes=(
            size(seen, place, "image_size", LARGEST),
            size(seen, place, "patch_size", LARGEST),
            size(seen, place, "max_num_tiles", MOST_TILES),
        ),
        tables=ByShape(_grids(seen, place)),
        eps=eps,
    )


def _grids(seen: Fields, place: str) -> tuple[tuple[int, int], ...]:
    most = size(seen, place, "max_num_tiles", MOST_TILES)
    given = seen.get(GRIDS)
    if given is None:
        return grids(most)
    good = isinstance(given, list) and all(
        isinstance(grid, list) and len(grid) == 2 and all(type(n) is int and n > 0 for n in grid)
        for grid in given
    )
    if not good or not given or any(y * x > most for y, x in given):
        raise bad(place, GRIDS, given, f"a list of [rows, columns] of at most {most} tiles")
    return tuple((y, x) for y, x in given)


def _sizes(stack: Stack) -> tuple[int, int]:
    """Heads and the inner width of a tower's layers."""
    block = blocks(stack)[0]
    return block.attention.heads, block.ffn.hidden
