"""Llama 3.2-Vision's names of tensors in Hugging Face's folders."""

from dataclasses import dataclass, replace
from typing import Any

from llama_jax.families.huggingface_names import NAMES
from llama_jax.families.names import Name, Row, Rows, Table, of_layers, of_model
from llama_jax.families.sizes import sizes
from llama_jax.layers.block import inner
from llama_jax.layers.stack import Stack
from llama_jax.models.cross_vision import CrossVision
from llama_jax.models.decoder import Decoder

TEXT = "language_model."
LAYER = f"{TEXT}model.layers.{{layer}}."
# The decoder's vocabulary and the ids after it are one tensor of a file.
EMBED = f"{TEXT}model.embed_tokens.weight"


def _text(rows: Rows) -> Rows:
    return tuple((ours, TEXT + theirs, axes) for ours, theirs, axes in rows)


CROSS: Rows = (
    ("cross_norm/scale", f"{LAYER}input_layernorm.weight", "D -> D"),
    ("cross/q/w", f"{LAYER}cross_attn.q_proj.weight", "(N H) D -> D N H"),
    ("cross/k/w", f"{LAYER}cross_attn.k_proj.weight", "(K H) D -> D K H"),
    ("cross/v/w", f"{LAYER}cross_attn.v_proj.weight", "(K H) D -> D K H"),
    ("cross/q_norm/scale", f"{LAYER}cross_attn.q_norm.weight", "H -> H"),
    ("cross/k_norm/scale", f"{LAYER}cross_attn.k_norm.weight", "H -> H"),
    ("cross/o/w", f"{LAYER}cross_attn.o_proj.weight", "D (N H) -> N H D"),
    ("gate", f"{LAYER}cross_attn_attn_gate", "1 -> "),
    *_text(NAMES.ffn),
    ("ffn_gate", f"{LAYER}cross_attn_mlp_gate", "1 -> "),
)


def _block(where: str, gated: bool) -> Rows:
    """A layer of the vision tower."""
    at = f"vision_model.{where}.layers.{{layer}}."
    norms = (("attn_norm", "input_layernorm"), ("ffn_norm", "post_attention_layernorm"))
    parts = (("scale", "weight"), ("bias", "bias"))
    rows: list[Row] = [
        (f"{ours}/{part}", f"{at}{theirs}.{name}", "D -> D")
        for ours, theirs in norms
        for part, name in parts
    ]
    rows += [(f"attn/{n}/w", f"{at}self_attn.{n}_proj.weight", "(N H) D -> D N H") for n in "qkv"]
    rows += [
        ("attn/o/w", f"{at}self_attn.o_proj.weight", "D (N H) -> N H D"),
        ("ffn/up/w", f"{at}mlp.fc1.weight", "F D -> D F"),
        ("ffn/up/b", f"{at}mlp.fc1.bias", "F -> F"),
        ("ffn/down/w", f"{at}mlp.fc2.weight", "D F -> F D"),
        ("ffn/down/b", f"{at}mlp.fc2.bias", "D -> D"),
    ]
    gates: Rows = (("attn_gate", f"{at}gate_attn", "1 -> "), ("ffn_gate", f"{at}gate_ffn", "1 -> "))
    return (*rows, *(gates if gated else ()))


SEEN: Rows = (
    ("patches/w", "vision_model.patch_embedding.weight", "D R X Y -> (R X Y) D"),
    ("first", "vision_model.class_embedding", "D -> D"),
    ("place", "vision_model.gated_positional_embedding.embedding", "P D -> P D"),
    ("places_gate", "vision_model.gated_positional_embedding.gate", "1 -> "),
    (
        "places",
        "vision_model.gated_positional_embedding.tile_embedding.weight",
        "A (M P D) -> A M P D",
    ),
    ("before_gate", "vision_model.pre_tile_positional_embedding.gate", "1 -> "),
    ("after_gate", "vision_model.post_tile_positional_embedding.gate", "1 -> "),
    ("pre_norm/scale", "vision_model.layernorm_pre.weight", "D -> D"),
    ("pre_norm/bias", "vision_model.layernorm_pre.bias", "D -> D"),
    ("post_norm/scale", "vision_model.layernorm_post.weight", "D -> D"),
    ("post_norm/bias", "vision_model.layernorm_post.bias", "D -> D"),
)
TILES: Rows = tuple(
    (
        ours,
        f"vision_model.{theirs}_tile_positional_embedding.embedding.weight",
        "A (M P D) -> A M P D",
    )
    for ours, theirs in (("before", "pre"), ("after", "post"))
)
OUT: Rows = (
    ("out/w", "multi_modal_projector.weight", "D A -> A D"),
    ("out/b", "multi_modal_projector.bias", "D -> D"),
)


@dataclass(frozen=True)
class MllamaNames:
    """The names of a decoder with cross-attention layers and of its tower.

    Attributes:
      text: names of the decoder's layers of self-attention, its embedding and its output.
    """

    text: Table

    @property
    def ends(self) -> tuple[str, str]:
        """The names of the embedding and of the output layer."""
        return self.text.ends

    @property
    def interleaved(self) -> bool:
        """Whether files hold the rotary pairs of q and k side by side."""
        return self.text.interleaved

    def names(self, model: CrossVision) -> list[Name]:
        """Every tensor of a model; see `names.tensors`."""
        decoder, vision = model.decoder, model.vision
        letters = sizes(alone(decoder)).letters
        own = (*self.text.attention, *self.text.ffn)

        def rows(part: int) -> Rows:
            return CROSS if blocks(decoder.stack)[part].attention is None else own

        found = of_model((("embed/w", f"{EMBED}[rows 0]", "V D -> V D"),), letters, "decoder")
        extra = letters | {"V": model.extra}
        found += of_model((("w", f"{EMBED}[rows 1]", "V D -> V D"),), extra, "extra")
        found += of_layers(decoder.stack, rows, lambda part: letters, "decoder/stack")
        found += of_model(self.text.out, letters, "decoder")

        tables, _ = vision.tables.shape(vision.tiles)
        seen = {"D": vision.width, "R": 3, "X": vision.patch, "Y": vision.patch, "A": tables}
        seen |= {"M": vision.tiles, "P": vision.tokens}
        found += of_model(SEEN, seen, "vision")
        found += of_model(TILES, seen | {"P": 1}, "vision")
        for name, theirs in (("local", "transformer"), ("across", "global_transformer")):
            found += _tower(getattr(vision, name), name, theirs, vision.width)
        width = vision.width * (len(vision.kept) + 1)
        return found + of_model(OUT, {"D": vision.out, "A": width}, "vision")


def _tower(stack: Stack, name: str, theirs: str, width: int) -> list[Name]:
    attention, ffn = (inner(part) for part in (blocks(stack)[0].attention, blocks(stack)[0].ffn))
    letters = {"D": width, "N": attention.heads, "H": attention.head_dim, "F": ffn.hidden}
    rows = _block(theirs, gated=name == "across")
    return of_layers(stack, lambda part: rows, lambda part: letters, f"vision/{name}")


def blocks(stack: Stack) -> tuple[Any, ...]:
    """The blocks of a stack's pattern, of whatever parts."""
    return stack.pattern


def alone(decoder: Decoder) -> Decoder:
    """The decoder without its cross-attention layers, which is a Llama 3."""
    own = tuple(block for block in blocks(decoder.stack) if block.attention is not None)
    return replace(decoder, stack=replace(decoder.stack, pattern=own))


HUGGING_FACE = MllamaNames(
    Table(
        embed=_text(NAMES.embed),
        attention=_text(NAMES.attention),
        ffn=_text(NAMES.ffn),
        out=_text(NAMES.out),
    )
)
