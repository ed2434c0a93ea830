"""GGUF's names of tensors, which all architectures share; the order of q and k is one of two."""

from llama_jax.families.names import Row, Table


def _table(q: str, k: str) -> Table:
    def layer(ours: str, theirs: str, axes: str) -> Row:
        return (ours, f"blk.{{layer}}.{theirs}.weight", axes)

    def plain(ours: str, theirs: str, axes: str) -> Row:
        return (ours, f"blk.{{layer}}.{theirs}.bias", axes)

    def bias(ours: str, theirs: str, axes: str) -> Row:
        return plain(ours, theirs, axes.replace(" D", "").replace("D ", ""))

    return Table(
        embed=(("embed/w", "token_embd.weight", "V D -> V D"),),
        attention=(
            layer("attn_norm/scale", "attn_norm", "D -> D"),
            layer("attn/q/w", "attn_q", q),
            layer("attn/k/w", "attn_k", k),
            layer("attn/v/w", "attn_v", "(K H) D -> D K H"),
            layer("attn/o/w", "attn_output", "D (N H) -> N H D"),
        ),
        qk_norm=(
            layer("attn/q_norm/scale", "attn_q_norm", "H -> H"),
            layer("attn/k_norm/scale", "attn_k_norm", "H -> H"),
        ),
        bias=(
            bias("attn/q/b", "attn_q", q),
            bias("attn/k/b", "attn_k", k),
            bias("attn/v/b", "attn_v", "(K H) D -> D K H"),
        ),
        out_bias=(plain("attn/o/b", "attn_output", "D -> D"),),
        ffn_bias=(
            plain("ffn/gate/b", "ffn_gate", "F -> F"),
            plain("ffn/up/b", "ffn_up", "F -> F"),
            plain("ffn/down/b", "ffn_down", "D -> D"),
        ),
        ffn=(
            layer("ffn_norm/scale", "ffn_norm", "D -> D"),
            layer("ffn/gate/w", "ffn_gate", "F D -> D F"),
            layer("ffn/up/w", "ffn_up", "F D -> D F"),
            layer("ffn/down/w", "ffn_down", "D F -> F D"),
        ),
        out=(
            ("norm/scale", "output_norm.weight", "D -> D"),
            ("out/w", "output.weight", "V D -> D V"),
        ),
    )


# Architectures that llama.cpp turns as Meta's code does keep rotary pairs side by side.
PAIRS = _table("(N H r) D -> D N (r H)", "(K H r) D -> D K (r H)")
HALVES = _table("(N H) D -> D N H", "(K H) D -> D K H")
