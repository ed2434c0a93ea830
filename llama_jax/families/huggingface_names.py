"""Hugging Face's names of tensors, which all families share."""

from llama_jax.families.names import Table

NAMES = Table(
    embed=(("embed/w", "model.embed_tokens.weight", "V D -> V D"),),
    attention=(
        ("attn_norm/scale", "model.layers.{layer}.input_layernorm.weight", "D -> D"),
        ("attn/q/w", "model.layers.{layer}.self_attn.q_proj.weight", "(N H) D -> D N H"),
        ("attn/k/w", "model.layers.{layer}.self_attn.k_proj.weight", "(K H) D -> D K H"),
        ("attn/v/w", "model.layers.{layer}.self_attn.v_proj.weight", "(K H) D -> D K H"),
        ("attn/o/w", "model.layers.{layer}.self_attn.o_proj.weight", "D (N H) -> N H D"),
    ),
    qk_norm=(
        ("attn/q_norm/scale", "model.layers.{layer}.self_attn.q_norm.weight", "H -> H"),
        ("attn/k_norm/scale", "model.layers.{layer}.self_attn.k_norm.weight", "H -> H"),
    ),
    bias=(
        ("attn/q/b", "model.layers.{layer}.self_attn.q_proj.bias", "(N H) -> N H"),
        ("attn/k/b", "model.layers.{layer}.self_attn.k_proj.bias", "(K H) -> K H"),
        ("attn/v/b", "model.layers.{layer}.self_attn.v_proj.bias", "(K H) -> K H"),
    ),
    out_bias=(("attn/o/b", "model.layers.{layer}.self_attn.o_proj.bias", "D -> D"),),
    ffn_bias=(
        ("ffn/gate/b", "model.layers.{layer}.mlp.gate_proj.bias", "F -> F"),
        ("ffn/up/b", "model.layers.{layer}.mlp.up_proj.bias", "F -> F"),
        ("ffn/down/b", "model.layers.{layer}.mlp.down_proj.bias", "D -> D"),
    ),
    ffn=(
        ("ffn_norm/scale", "model.layers.{layer}.post_attention_layernorm.weight", "D -> D"),
        ("ffn/gate/w", "model.layers.{layer}.mlp.gate_proj.weight", "F D -> D F"),
        ("ffn/up/w", "model.layers.{layer}.mlp.up_proj.weight", "F D -> D F"),
        ("ffn/down/w", "model.layers.{layer}.mlp.down_proj.weight", "D F -> F D"),
    ),
    out=(
        ("norm/scale", "model.norm.weight", "D -> D"),
        ("out/w", "lm_head.weight", "V D -> D V"),
    ),
)

# Tables of rope that old files carry along; ours are computed.
BUFFERS = (
    "model.rotary_emb.inv_freq",
    "model.layers.{layer}.self_attn.rotary_emb.inv_freq",
)
