"""Llama 3.2-Vision's names of tensors in Meta's folders.

Layers of self-attention and layers that look at pictures are numbered apart.
"""

from llama_jax.families.llama_meta import NAMES
from llama_jax.families.mllama_names import MllamaNames
from llama_jax.families.names import Row, Rows

TEXT, SEEN = "text_model.", "vision_model.vision_encoder."
TABLES = (
    "gated_positional_embedding",
    "pre_tile_pos_embed.embedding",
    "post_tile_pos_embed.embedding",
)


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


META = MllamaNames(
    ends=(f"{TEXT}tok_embeddings.weight", f"{TEXT}output.weight"),
    embed=_text(NAMES.embed),
    extra=(("w", f"{TEXT}learnable_embedding.weight", "V D -> V D"),),
    own=_text((*NAMES.attention, *NAMES.ffn)),
    cross=CROSS,
    out=_text(NAMES.out),
    tower=TOWER,
    tiles=OF_TILES,
    projection=OUT,
    towers=("transformer", "global_transformer"),
    block=_block,
    apart=True,
    interleaved=True,
)
