"""Llama 4's names of tensors in Hugging Face's folders, with those of its eyes."""

from dataclasses import dataclass, fields, replace

from llama_jax.families.llama4_names import HUGGING_FACE as ALONE
from llama_jax.families.mllama_names import blocks
from llama_jax.families.names import Name, Row, Rows, Table, of_layers, of_model
from llama_jax.models.early_vision import EarlyVision
from llama_jax.models.shuffled_vision import ShuffledVision

TEXT, VISION, OUT = "language_model.", "vision_model.", "multi_modal_projector."
LAYER = f"{VISION}model.layers.{{layer}}."

SEEN: Rows = (
    ("patches/w", f"{VISION}patch_embedding.linear.weight", "D A -> A D"),
    ("last", f"{VISION}class_embedding", "D -> D"),
    ("place", f"{VISION}positional_embedding_vlm", "P D -> P D"),
    ("pre_norm/scale", f"{VISION}layernorm_pre.weight", "D -> D"),
    ("pre_norm/bias", f"{VISION}layernorm_pre.bias", "D -> D"),
    ("post_norm/scale", f"{VISION}layernorm_post.weight", "D -> D"),
    ("post_norm/bias", f"{VISION}layernorm_post.bias", "D -> D"),
)
# Of a map from one width to another: both in letters of their own.
MAPS = {
    "adapter/w": f"{VISION}vision_adapter.mlp.fc1.weight",
    "adapter_out/w": f"{VISION}vision_adapter.mlp.fc2.weight",
    "out/w": f"{OUT}linear_1.weight",
}


def _layer() -> Rows:
    rows: list[Row] = []
    for ours, theirs in (
        ("attn_norm", "input_layernorm"),
        ("ffn_norm", "post_attention_layernorm"),
    ):
        rows += [
            (f"{ours}/scale", f"{LAYER}{theirs}.weight", "D -> D"),
            (f"{ours}/bias", f"{LAYER}{theirs}.bias", "D -> D"),
        ]
    for n in "qkv":
        heads, at = "(N H r)" if n in "qk" else "(N H)", f"{LAYER}self_attn.{n}_proj"
        turned = "N (r H)" if n in "qk" else "N H"
        rows += [
            (f"attn/{n}/w", f"{at}.weight", f"{heads} D -> D {turned}"),
            (f"attn/{n}/b", f"{at}.bias", f"{heads} -> {turned}"),
        ]
    return (
        *rows,
        ("attn/o/w", f"{LAYER}self_attn.o_proj.weight", "D (N H) -> N H D"),
        ("attn/o/b", f"{LAYER}self_attn.o_proj.bias", "D -> D"),
        ("ffn/up/w", f"{LAYER}mlp.fc1.weight", "F D -> D F"),
        ("ffn/up/b", f"{LAYER}mlp.fc1.bias", "F -> F"),
        ("ffn/down/w", f"{LAYER}mlp.fc2.weight", "D F -> F D"),
        ("ffn/down/b", f"{LAYER}mlp.fc2.bias", "D -> D"),
    )


ROWS = _layer()


@dataclass(frozen=True)
class Llama4VisionNames:
    """The names of a decoder and of its eyes.

    Attributes:
      text: names of the decoder's tensors.
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

    def names(self, model: EarlyVision) -> list[Name]:
        """Every tensor of a model; see `names.tensors`."""
        return [*self.text.names(model.decoder), *_tower(model.vision)]


def _tower(vision: ShuffledVision) -> list[Name]:
    width, [block] = vision.width, blocks(vision.stack)
    letters = {"D": width, "P": vision.side**2 + 1, "A": 3 * vision.patch**2}
    found = of_model(SEEN, letters, "vision")
    attention = block.attention
    letters = {"D": width, "N": attention.heads, "H": attention.head_dim, "F": block.ffn.hidden}
    found += of_layers(vision.stack, lambda part: ROWS, lambda part: letters, "vision/stack")
    widths = [width * vision.merge**2, vision.adapter, vision.adapter, vision.out]
    for i, (ours, theirs) in enumerate(MAPS.items()):
        sizes = {"A": widths[i], "D": widths[i + 1]}
        found += of_model(((ours, theirs, "D A -> A D"),), sizes, "vision")
    return found


def _within(rows: Rows) -> Rows:
    return tuple((ours, TEXT + theirs, axes) for ours, theirs, axes in rows)


HUGGING_FACE = Llama4VisionNames(
    replace(ALONE, **{field.name: _within(getattr(ALONE, field.name)) for field in fields(ALONE)})
)
