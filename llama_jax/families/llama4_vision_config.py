"""Llama 4's config.json with eyes: a text model, a tower, and the ids that stand for pictures."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from llama_jax.data.marks import Marks
from llama_jax.errors import FormatError, UserError
from llama_jax.families.fused import parts
from llama_jax.families.huggingface import Fields
from llama_jax.families.huggingface_numbers import LARGEST, bad, exactly, positive, size
from llama_jax.families.llama4_huggingface import WORDS
from llama_jax.families.llama4_vision_names import HUGGING_FACE, VISION, Llama4VisionNames
from llama_jax.families.mllama_names import blocks
from llama_jax.families.names import tensors
from llama_jax.formats.source import Source
from llama_jax.layers.attention import Attention
from llama_jax.layers.block import Block
from llama_jax.layers.mlp import MLP
from llama_jax.layers.norm import LayerNorm
from llama_jax.layers.rope import Rope
from llama_jax.layers.stack import Stack
from llama_jax.models.early_vision import EarlyVision
from llama_jax.models.shuffled_vision import ShuffledVision
from llama_jax.trees import difference

SPOKEN, SEEN = "text_config", "vision_config"
BEGIN, END, PATCH = "boi_token_index", "eoi_token_index", "image_token_index"
SHUFFLE, ADAPTER = "pixel_shuffle_ratio", "projector_output_dim"
SAME = ("projector_input_dim", "vision_output_dim")  # as ADAPTER, for nothing else works there
OWN_POSITIONS = f"{VISION}positional_embedding"
KNOWN = {
    *("attention_dropout", "hidden_act", "hidden_size", "image_size", "initializer_range"),
    *("intermediate_size", "model_type", "multi_modal_projector_bias", "norm_eps"),
    *("num_attention_heads", "num_channels", "num_hidden_layers", "patch_size", ADAPTER, *SAME),
    *(SHUFFLE, "projector_dropout", "rope_parameters", "rope_theta", "vision_feature_layer"),
    *("vision_feature_select_strategy", "architectures", "dtype", "torch_dtype"),
    *("output_attentions", "output_hidden_states", "return_dict"),
}
# What is built, and what else files may say of the same; absent means the first.
FIXED = {
    "hidden_act": ("gelu",),
    "num_channels": (3,),
    "multi_modal_projector_bias": (False,),
    "norm_eps": (1e-5,),  # transformers and Meta have it without asking
    "vision_feature_layer": (-1,),
    "vision_feature_select_strategy": ("default",),
}


@dataclass(frozen=True)
class Llama4Vision:
    """How Llama 4 is written down in Hugging Face's folders, with its eyes; as `HuggingFace`."""

    model_type: str = "llama4"
    architecture: str = "Llama4ForConditionalGeneration"
    table: Llama4VisionNames = HUGGING_FACE

    @property
    def defaults(self) -> Mapping[str, Any]:
        """Values of fields of the text that are absent."""
        return WORDS.defaults

    def claims(self, config: Mapping[str, Any]) -> bool:
        """Whether a config.json names this family."""
        return config.get("model_type") == self.model_type

    def spoken(self, config: Mapping[str, Any]) -> Fields:
        """The part of a config.json that names the ids of a tokenizer."""
        return {**config, **_part(config, SPOKEN, "config.json")}

    def with_ids(self, config: Fields, ids: Mapping[str, Any]) -> Fields:
        """A config.json with the ids of a tokenizer, where `spoken` finds them."""
        return config | {SPOKEN: config[SPOKEN] | dict(ids)}

    def source(self, model: EarlyVision, source: Source, config: Mapping[str, Any]) -> Source:
        """A folder's tensors, under the names of the table.

        Raises:
          FormatError: positions of the tower in the form in which it was trained before it got a
            text; they would have to be resampled.
        """
        del config
        if OWN_POSITIONS in source.tensors:
            raise FormatError(
                f"{source.place}: tensor {OWN_POSITIONS!r} came where {OWN_POSITIONS}_vlm was "
                "expected; positions of the one kind are not those of the other, try the published "
                "folder of the whole model"
            )
        return parts(source, tensors(model, self.table))

    def unused(self, model: EarlyVision, names: Iterable[str]) -> tuple[str, ...]:
        """Tensors that a checkpoint may have and that are not read: none."""
        del model, names
        return ()

    def model(self, config: Fields, place: Path | str = "config.json") -> EarlyVision:
        """The model that a config.json describes.

        Raises:
          FormatError: a missing or impossible number, or a feature that is not known.
        """
        if (kind := config.get("model_type")) != self.model_type:
            raise bad(place, "model_type", kind, repr(self.model_type))
        text, seen = (_part(config, name, place) for name in (SPOKEN, SEEN))
        packed = {k: config[k] for k in ("quantization_config",) if k in config}
        try:
            decoder = WORDS.model(packed | text, f"{place}, {SPOKEN}")
            vision = _vision(seen, decoder.width, f"{place}, {SEEN}")
            return EarlyVision(decoder, vision, _marks(config, place))
        except UserError as error:
            ours = isinstance(error, FormatError)
            raise (error if ours else FormatError(f"{place}: {error}")) from None

    def config(self, model: EarlyVision, dtype: str = "float32") -> Fields:
        """The config.json of a model, but for the ids of its tokenizer."""
        vision, [block] = model.vision, blocks(model.vision.stack)
        text = WORDS.config(model.decoder, dtype)
        del text["architectures"]
        return {
            "architectures": [self.architecture],
            "model_type": self.model_type,
            "torch_dtype": dtype,
            BEGIN: model.marks.begin,
            END: model.marks.end,
            PATCH: model.marks.patch,
            "tie_word_embeddings": model.tied,
            SPOKEN: text,
            SEEN: {
                "model_type": "llama4_vision_model",
                "hidden_size": vision.width,
                "hidden_act": "gelu",
                "num_hidden_layers": vision.stack.layers,
                "num_attention_heads": block.attention.heads,
                "num_channels": 3,
                "intermediate_size": block.ffn.hidden,
                "image_size": vision.tile,
                "patch_size": vision.patch,
                "norm_eps": vision.norm.eps,
                SHUFFLE: 1 / vision.merge,
                ADAPTER: vision.adapter,
                **dict.fromkeys(SAME, vision.adapter),
                "rope_theta": 10_000.0
                if block.attention.rope is None
                else block.attention.rope.theta,
                "multi_modal_projector_bias": False,
                "initializer_range": 0.02,
            },
        }

    def lacks(self, model: Any) -> str | None:
        """What a model has that its config.json would not say, or None."""
        if not isinstance(model, EarlyVision):
            return f"the model is a {type(model).__name__}"
        if what := WORDS.lacks(model.decoder):
            return what
        if len(blocks(model.vision.stack)) > 1:
            return f"model.vision.stack.pattern has {len(model.vision.stack.pattern)} blocks"
        try:
            made = self.model(self.config(model))
        except FormatError as error:
            return str(error).removeprefix("config.json: ").partition(";")[0]
        stack = replace(made.vision.stack, scan=model.vision.stack.scan)
        stack = replace(stack, remat=model.vision.stack.remat, saved=model.vision.stack.saved)
        vision = replace(made.vision, stack=stack)
        return difference(model, replace(model, vision=vision, marks=made.marks), "model")


def _part(config: Mapping[str, Any], name: str, place: Path | str) -> Fields:
    if not isinstance(part := config.get(name), dict):
        raise FormatError(f"{place}: {name} is missing; it keeps the sizes of a part of the model")
    return part


def _marks(config: Fields, place: Path | str) -> Marks:
    """The ids of pictures; those that a config.json does not name follow as in Meta's tokenizer."""
    own = Marks()
    given = {name: config.get(name, id) for name, id in ((BEGIN, own.begin), (END, own.end))}
    given[PATCH] = config.get(PATCH, own.patch)
    for name, id in given.items():
        if type(id) is not int or id < 0:
            raise bad(place, name, id, "an id")
    marks = Marks.after(given[BEGIN])
    for name, wanted in ((END, marks.end), (PATCH, marks.patch)):
        if given[name] != wanted:
            raise bad(place, name, given[name], f"{wanted}, after {BEGIN}={given[BEGIN]}")
    return marks


def _vision(seen: Fields, out: int, place: str) -> ShuffledVision:
    for name in seen:
        if name not in KNOWN and not name.startswith("_") and seen[name] not in (None, False):
            raise bad(
                place, name, seen[name], "a file without this field, whose meaning is not known,"
            )
    for name, values in FIXED.items():
        exactly(seen.get(name, values[0]), name, values, place)
    width, heads, hidden = (
        size(seen, place, name)
        for name in ("hidden_size", "num_attention_heads", "intermediate_size")
    )
    if width % heads or width // heads % 4:
        raise bad(place, "num_attention_heads", heads, f"heads of 4 n numbers of {width}")
    merge = round(1 / positive(seen.get(SHUFFLE, 0.5), SHUFFLE, place))
    if merge < 1 or 1 / merge != seen.get(SHUFFLE, 0.5):
        raise bad(place, SHUFFLE, seen.get(SHUFFLE), "1 divided by a whole number")
    if hidden != width * merge**2:  # transformers has one number for both
        raise bad(place, "intermediate_size", hidden, f"{width * merge**2}, of {merge} x {merge}")
    adapter = size(seen, place, ADAPTER)
    for name in SAME:
        if seen.get(name, adapter) != adapter:
            raise bad(place, name, seen[name], f"{ADAPTER}={adapter}")
    rope = Rope(_theta(seen, place), (1, 1))
    attention = Attention(heads, heads, width // heads, rope=rope, bias=True, out_bias=True)
    layers = size(seen, place, "num_hidden_layers", 10_000)
    norm = LayerNorm()
    return ShuffledVision(
        width,
        out,
        Stack((Block(attention, MLP(hidden, bias=True), norm=norm),), layers),
        adapter=adapter,
        tile=size(seen, place, "image_size", LARGEST),
        patch=size(seen, place, "patch_size", LARGEST),
        merge=merge,
        norm=norm,
    )


def _theta(seen: Fields, place: str) -> float:
    given = seen.get("rope_parameters") or {}
    if not isinstance(given, dict) or given.get("rope_type", "default") != "default":
        raise bad(place, "rope_parameters", given, "a rotary embedding without scaling")
    theta = given.get("rope_theta", seen.get("rope_theta"))
    return positive(10_000.0 if theta is None else theta, "rope_theta", place)
