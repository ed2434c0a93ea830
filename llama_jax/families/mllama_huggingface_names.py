"""Llama 3.2-Vision's names of tensors in Hugging Face's folders."""

from llama_jax.families.huggingface_names import NAMES
from llama_jax.families.mllama_names import MllamaNames
from llama_jax.families.names import Row, Rows

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

HUGGING_FACE = MllamaNames(
    ends=(EMBED, f"{TEXT}lm_head.weight"),
    embed=(("embed/w", f"{EMBED}[rows 0]", "V D -> V D"),),
    extra=(("w", f"{EMBED}[rows 1]", "V D -> V D"),),
    own=_text((*NAMES.attention, *NAMES.ffn)),
    cross=CROSS,
    out=_text(NAMES.out),
    tower=SEEN,
    tiles=TILES,
    projection=OUT,
    towers=("transformer", "global_transformer"),
    block=_block,
)
