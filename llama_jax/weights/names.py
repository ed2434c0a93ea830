"""Which tensor of a checkpoint is which of our weights, and how its axes are turned.

A row says: our path, their name, their axes -> ours (einops' notation). Reading follows the arrow,
writing goes against it. The letters are those of `axes.py`; two letters in brackets are one axis of
the file. Lower-case r is the half of a rotary pair: Meta's files hold a head's pairs side by side
(H r), ours and Hugging Face's hold first all first halves, then all second ones (r H).

    ours                   Hugging Face                       Meta
    attn/q/w  [D,N,H]      self_attn.q_proj.weight (N H) D    attention.wq.weight (N H r) D
"""

import re
from dataclasses import dataclass
from typing import Any

from einops import rearrange

# Ours, theirs, "their axes -> our axes". {layer} is the number of a layer, whose weights we stack.
Rows = tuple[tuple[str, str, str], ...]

HUGGING_FACE: Rows = (
    ("embed/w", "model.embed_tokens.weight", "V D -> V D"),
    ("attn_norm/scale", "model.layers.{layer}.input_layernorm.weight", "D -> D"),
    ("attn/q/w", "model.layers.{layer}.self_attn.q_proj.weight", "(N H) D -> D N H"),
    ("attn/k/w", "model.layers.{layer}.self_attn.k_proj.weight", "(K H) D -> D K H"),
    ("attn/v/w", "model.layers.{layer}.self_attn.v_proj.weight", "(K H) D -> D K H"),
    ("attn/o/w", "model.layers.{layer}.self_attn.o_proj.weight", "D (N H) -> N H D"),
    ("ffn_norm/scale", "model.layers.{layer}.post_attention_layernorm.weight", "D -> D"),
    ("ffn/gate/w", "model.layers.{layer}.mlp.gate_proj.weight", "F D -> D F"),
    ("ffn/up/w", "model.layers.{layer}.mlp.up_proj.weight", "F D -> D F"),
    ("ffn/down/w", "model.layers.{layer}.mlp.down_proj.weight", "D F -> F D"),
    ("norm/scale", "model.norm.weight", "D -> D"),
    ("out/w", "lm_head.weight", "V D -> D V"),
)
META: Rows = (
    ("embed/w", "tok_embeddings.weight", "V D -> V D"),
    ("attn_norm/scale", "layers.{layer}.attention_norm.weight", "D -> D"),
    ("attn/q/w", "layers.{layer}.attention.wq.weight", "(N H r) D -> D N (r H)"),
    ("attn/k/w", "layers.{layer}.attention.wk.weight", "(K H r) D -> D K (r H)"),
    ("attn/v/w", "layers.{layer}.attention.wv.weight", "(K H) D -> D K H"),
    ("attn/o/w", "layers.{layer}.attention.wo.weight", "D (N H) -> N H D"),
    ("ffn_norm/scale", "layers.{layer}.ffn_norm.weight", "D -> D"),
    ("ffn/gate/w", "layers.{layer}.feed_forward.w1.weight", "F D -> D F"),
    ("ffn/up/w", "layers.{layer}.feed_forward.w3.weight", "F D -> D F"),
    ("ffn/down/w", "layers.{layer}.feed_forward.w2.weight", "D F -> F D"),
    ("norm/scale", "norm.weight", "D -> D"),
    ("out/w", "output.weight", "V D -> D V"),
)
# GGUF of architecture "llama" keeps Meta's order of the rotary pairs.
GGUF: Rows = (
    ("embed/w", "token_embd.weight", "V D -> V D"),
    ("attn_norm/scale", "blk.{layer}.attn_norm.weight", "D -> D"),
    ("attn/q/w", "blk.{layer}.attn_q.weight", "(N H r) D -> D N (r H)"),
    ("attn/k/w", "blk.{layer}.attn_k.weight", "(K H r) D -> D K (r H)"),
    ("attn/v/w", "blk.{layer}.attn_v.weight", "(K H) D -> D K H"),
    ("attn/o/w", "blk.{layer}.attn_output.weight", "D (N H) -> N H D"),
    ("ffn_norm/scale", "blk.{layer}.ffn_norm.weight", "D -> D"),
    ("ffn/gate/w", "blk.{layer}.ffn_gate.weight", "F D -> D F"),
    ("ffn/up/w", "blk.{layer}.ffn_up.weight", "F D -> D F"),
    ("ffn/down/w", "blk.{layer}.ffn_down.weight", "D F -> F D"),
    ("norm/scale", "output_norm.weight", "D -> D"),
    ("out/w", "output.weight", "V D -> D V"),
)


@dataclass(frozen=True)
class Name:
    """One tensor of a file and one weight of ours (of one layer, if it is a layer's).

    Attributes:
      path: our name, from the decoder down; a layer's weights are below "stack/layers/block_0", or
        below "stack/layer_7/block_0" if the layers are not stacked.
      layer: which of the stacked layers, or None.
      tensor: their name.
      axes: "theirs -> ours".
      shape: sizes of the tensor in the file.
      sizes: sizes of the letters.
    """

    path: str
    layer: int | None
    tensor: str
    axes: str
    shape: tuple[int, ...]
    sizes: tuple[tuple[str, int], ...]

    @property
    def letters(self) -> str:
        """A letter for each axis of the file's tensor: of (N H r) it is N, the slowest."""
        return re.sub(r"\((\w)[^)]*\)| ", r"\1", self.axes.split(" -> ")[0])

    def ours(self, tensor: Any) -> Any:
        """The weight, from the file's tensor, in numpy or in jax."""
        return rearrange(tensor, self.axes, **self._inside())

    def theirs(self, weight: Any) -> Any:
        """The file's tensor, from the weight."""
        left, right = self.axes.split(" -> ")
        return rearrange(weight, f"{right} -> {left}", **self._inside())

    def _inside(self) -> dict[str, int]:
        """Sizes of the letters that the pattern uses; einops refuses others."""
        return {letter: size for letter, size in self.sizes if letter in self.axes}


def names(
    rows: Rows, sizes: dict[str, int], layers: int, tied: bool, scan: bool = True
) -> list[Name]:
    """Every tensor that a model has in a format.

    Args:
      rows: the format.
      sizes: sizes of D, N, K, H, F and V.
      layers: L.
      tied: the embedding is the output layer, and a file need not have the latter.
      scan: our layers are stacked (see `Stack`).
    """
    found = []
    for path, tensor, axes in rows:
        if tied and path == "out/w":
            continue
        own = dict(sizes)
        if "r" in axes:
            own |= {"H": sizes["H"] // 2, "r": 2}
        shape = _shape(axes.split(" -> ")[0], own)
        of_layer = "{layer}" in tensor
        for layer in range(layers) if of_layer else (None,):
            name = tensor.format(layer=layer)
            if not of_layer:
                where = path
            elif scan:
                where = f"stack/layers/block_0/{path}"
            else:
                where, layer = f"stack/layer_{layer}/block_0/{path}", None
            found.append(Name(where, layer, name, axes, shape, tuple(own.items())))
    return found


def _shape(axes: str, sizes: dict[str, int]) -> tuple[int, ...]:
    """The shape of "(N H) D"."""
    shape, group = [], None
    for part in axes.replace("(", "( ").replace(")", " )").split():
        if part == "(":
            group = 1
        elif part == ")":
            shape.append(group)
            group = None
        elif group is not None:
            group *= sizes[part]
        else:
            shape.append(sizes[part])
    return tuple(shape)
