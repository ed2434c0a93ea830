"""Meta's params.json of Llama 4 to a model's config (`llama_models/llama4/args.py`).

What is absent is what Meta's program takes then. Widths come from the tensors, and are compared
with what the file makes of them. The context is that of the published models.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llama_jax.errors import FormatError
from llama_jax.families.huggingface import MOST_LAYERS
from llama_jax.families.huggingface_numbers import bad, positive, size
from llama_jax.families.sizes import Sizes, build
from llama_jax.layers.attention import TemperatureTuning
from llama_jax.layers.experts import Experts
from llama_jax.layers.mlp import SwiGLU
from llama_jax.layers.rope import Llama3Rope, Rope
from llama_jax.models.decoder import Decoder

FIELDS = {
    *("dim", "n_layers", "n_heads", "n_kv_heads", "head_dim", "vocab_size", "multiple_of"),
    *("ffn_dim_multiplier", "ffn_exp", "norm_eps", "attention_chunk_size", "rope_theta"),
    *("use_scaled_rope", "rope_scaling_factor", "rope_high_freq_factor", "nope_layer_interval"),
    *("use_qk_norm", "attn_temperature_tuning", "floor_scale", "attn_scale", "moe_args"),
    *("vision_args", "max_batch_size", "max_seq_len"),
}
EXPERTS = {"num_experts", "capacity_factor", "auto_scale_F", "top_k", "interleave_moe_layer_step"}
EMBED, DENSE = "tok_embeddings.weight", "feed_forward.w1.weight"
ROUTED = "feed_forward.experts.w1"
LONG, LONGEST = 1_048_576, 10_485_760  # of Maverick, and of Scout, whose rope is scaled


@dataclass(frozen=True)
class Llama4Shapes:
    """What the tensors say.

    Attributes:
      vocab: rows of the embedding.
      dense: width of a feed-forward without experts, or None.
      expert: width of an expert, or None.
    """

    vocab: int
    dense: int | None
    expert: int | None

    @classmethod
    def of(cls, shapes: Mapping[str, tuple[int, ...]], file: Path) -> "Llama4Shapes":
        """Of all tensors.

        Raises:
          FormatError: there is no embedding.
        """
        if len(shapes.get(EMBED, ())) != 2:
            raise FormatError(f"{file}: tensor {EMBED!r} is missing; is this a Llama of Meta?")

        def width(ending: str, axis: int) -> int | None:
            found = (s[axis] for name, s in shapes.items() if name.endswith(ending) and len(s) > 1)
            return next(found, None)

        return cls(shapes[EMBED][0], width(DENSE, 0), width(ROUTED, -1))


def model(
    params: Mapping[str, Any], shapes: Llama4Shapes, place: Path | str = "params.json"
) -> Decoder:
    """The language model of a params.json.

    Raises:
      FormatError: a number that is missing, impossible or not that of the tensors, or a field that
        is not known.
    """
    moe = params.get("moe_args") or {}
    for name, value in params.items():
        if name not in FIELDS and value not in (None, False, -1):
            raise bad(place, name[:80], value, "a file without this field, not known in Llama 4,")
    if not isinstance(moe, Mapping) or not moe.keys() <= EXPERTS:
        raise bad(place, "moe_args", moe, f"an object of {', '.join(sorted(EXPERTS))}")

    def whole(name: str, default: Any = None, of: Mapping[str, Any] = params) -> int:
        value = of.get(name)
        return size({name: default if value is None else value}, place, name)

    def number(name: str, default: float, of: Mapping[str, Any] = params) -> float:
        value = of.get(name)
        return positive(default if value is None else value, name, place)

    dim, heads = whole("dim"), whole("n_heads")
    layers = size(params, place, "n_layers", MOST_LAYERS)
    head = dim // heads  # what Meta's attention computes with, whatever head_dim says
    if dim % heads or head % 2 or params.get("head_dim") not in (None, head):
        raise bad(place, "n_heads", heads, f"a number that makes even heads of dim={dim}")
    if params.get("vocab_size") not in (None, -1, shapes.vocab):
        raise bad(place, "vocab_size", params["vocab_size"], f"the embedding's {shapes.vocab}")
    bare = params.get("nope_layer_interval") and whole("nope_layer_interval")
    rotated = tuple(not bare or (i + 1) % bare != 0 for i in range(layers))
    chunk = params.get("attention_chunk_size") and whole("attention_chunk_size")
    tuning = TemperatureTuning(number("floor_scale", 8192.0), number("attn_scale", 0.1))
    mixture, every = None, 1
    if moe:
        every = whole("interleave_moe_layer_step", 1, moe)
        counts = whole("num_experts", None, moe), whole("top_k", 1, moe)
        hidden = _hidden(int(number("ffn_exp", 4.0) * dim), whole, number, moe)
        _same(hidden, shapes.expert, "experts", place)
        mixture = Experts(hidden, *counts, shared=SwiGLU(hidden))
    experts = tuple(mixture if (i + 1) % every == 0 else None for i in range(layers))
    dense = _hidden(4 * dim, whole, number, {})
    if None in experts:
        _same(dense, shapes.dense, "feed-forward", place)
    scaled = bool(params.get("use_scaled_rope"))
    theta = number("rope_theta", 5e5)
    scales = number("rope_scaling_factor", 16.0), 1.0, number("rope_high_freq_factor", 1.0)
    try:
        return build(
            Sizes(
                vocab=shapes.vocab,
                width=dim,
                layers=layers,
                heads=heads,
                kv_heads=whole("n_kv_heads", heads),
                head_dim=head,
                hidden=dense,
                eps=number("norm_eps", 1e-5),
                rope=Llama3Rope(theta, (1,), *scales) if scaled else Rope(theta),
                context=LONGEST if scaled else LONG,
                tied=False,
                rotated=() if all(rotated) else rotated,
                chunks=tuple(chunk if turned else None for turned in rotated) if chunk else (),
                bare_norm=bool(params.get("use_qk_norm")),
                tuning=tuning if params.get("attn_temperature_tuning") else None,
                experts=experts if any(experts) else (),
            )
        )
    except ValueError as error:
        raise FormatError(f"{place}: {error}") from None


def _hidden(width: int, whole: Any, number: Any, moe: Mapping[str, Any]) -> int:
    """Two thirds of the width, scaled, shared with the one for all, up to the next multiple."""
    hidden = int(number("ffn_dim_multiplier", 1.0) * int(2 * width / 3))
    if moe and moe.get("auto_scale_F", True):
        hidden = int(hidden / (number("capacity_factor", 1.0, moe) + 1))
    multiple = whole("multiple_of", 256)
    return -(-hidden // multiple) * multiple


def _same(hidden: int, found: int | None, what: str, place: Path | str) -> None:
    if found is not None and hidden != found:
        raise FormatError(
            f"{place}: its numbers make {what} of width {hidden}, the tensors have {found}; do "
            "both belong to one model?"
        )
