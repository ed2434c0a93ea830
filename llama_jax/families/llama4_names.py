"""Llama 4's names of tensors, Hugging Face's and Meta's.

Both have the rotary pairs of q and k side by side. Hugging Face's files hold the first two matrices
of all experts of a layer in one tensor, and so, seen through `llama4_meta`, do Meta's.
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
