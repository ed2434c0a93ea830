"""Llama 4's names of tensors, Hugging Face's and Meta's.

Both have the rotary pairs of q and k side by side. What is fused in Meta's files, `llama4_meta`
takes apart before these names are looked up.
"""

from llama_jax.families.huggingface_names import NAMES
from llama_jax.families.names import Rows, Table

LAYER = "model.layers.{layer}."
NORM: Rows = (NAMES.ffn[0],)
Q, K = "(N H r) D -> D N (r H)", "(K H r) D -> D K (r H)"

HUGGING_FACE = Table(
    embed=NAMES.embed,
    attention=(
        NAMES.attention[0],
        ("attn/q/w", f"{LAYER}self_attn.q_proj.weight", Q),
        ("attn/k/w", f"{LAYER}self_attn.k_proj.weight", K),
        *NAMES.attention[3:],
    ),
    bias=(
        ("attn/q/b", f"{LAYER}self_attn.q_proj.bias", "(N H r) -> N (r H)"),
        ("attn/k/b", f"{LAYER}self_attn.k_proj.bias", "(K H r) -> K (r H)"),
        NAMES.bias[2],
    ),
    out_bias=NAMES.out_bias,
    ffn=(
        *NORM,
        ("ffn/gate/w", f"{LAYER}feed_forward.gate_proj.weight", "F D -> D F"),
        ("ffn/up/w", f"{LAYER}feed_forward.up_proj.weight", "F D -> D F"),
        ("ffn/down/w", f"{LAYER}feed_forward.down_proj.weight", "D F -> F D"),
    ),
    experts=(
        *NORM,
        ("ffn/router/w", f"{LAYER}feed_forward.router.weight", "E D -> D E"),
        ("ffn/gate/w", f"{LAYER}feed_forward.experts.gate_up_proj[0]", "E D F -> E D F"),
        ("ffn/up/w", f"{LAYER}feed_forward.experts.gate_up_proj[1]", "E D F -> E D F"),
        ("ffn/down/w", f"{LAYER}feed_forward.experts.down_proj", "E F D -> E F D"),
    ),
    shared=(
        ("ffn/shared/gate/w", f"{LAYER}feed_forward.shared_expert.gate_proj.weight", "F D -> D F"),
        ("ffn/shared/up/w", f"{LAYER}feed_forward.shared_expert.up_proj.weight", "F D -> D F"),
        ("ffn/shared/down/w", f"{LAYER}feed_forward.shared_expert.down_proj.weight", "D F -> F D"),
    ),
    out=NAMES.out,
)

OWN = "layers.{layer}."
FFN_NORM: Rows = (("ffn_norm/scale", f"{OWN}ffn_norm.weight", "D -> D"),)
META = Table(
    embed=(("embed/w", "tok_embeddings.weight", "V D -> V D"),),
    attention=(
        ("attn_norm/scale", f"{OWN}attention_norm.weight", "D -> D"),
        ("attn/q/w", f"{OWN}attention.wq.weight", Q),
        ("attn/k/w", f"{OWN}attention.wk.weight", K),
        ("attn/v/w", f"{OWN}attention.wv.weight", "(K H) D -> D K H"),
        ("attn/o/w", f"{OWN}attention.wo.weight", "D (N H) -> N H D"),
    ),
    ffn=(
        *FFN_NORM,
        ("ffn/gate/w", f"{OWN}feed_forward.w1.weight", "F D -> D F"),
        ("ffn/up/w", f"{OWN}feed_forward.w3.weight", "F D -> D F"),
        ("ffn/down/w", f"{OWN}feed_forward.w2.weight", "D F -> F D"),
    ),
    experts=(
        *FFN_NORM,
        ("ffn/router/w", f"{OWN}feed_forward.router_DE", "D E -> D E"),
        ("ffn/gate/w", f"{OWN}feed_forward.experts.w1", "E D F -> E D F"),
        ("ffn/up/w", f"{OWN}feed_forward.experts.w3", "E D F -> E D F"),
        ("ffn/down/w", f"{OWN}feed_forward.experts.w2", "E F D -> E F D"),
    ),
    shared=(
        ("ffn/shared/gate/w", f"{OWN}feed_forward.shared_expert.w1.weight", "F D -> D F"),
        ("ffn/shared/up/w", f"{OWN}feed_forward.shared_expert.w3.weight", "F D -> D F"),
        ("ffn/shared/down/w", f"{OWN}feed_forward.shared_expert.w2.weight", "D F -> F D"),
    ),
    out=(
        ("norm/scale", "norm.weight", "D -> D"),
        ("out/w", "output.weight", "V D -> D V"),
    ),
)
