"""A GGUF file's fields to a model's config and back.

Only what is understood is accepted: another architecture, experts, another kind of rope scaling and
fields that would change the numbers are refused by name.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from llama_jax.errors import FormatError, UserError
from llama_jax.layers.attention import Attention
from llama_jax.layers.block import Block
from llama_jax.layers.mlp import SwiGLU
from llama_jax.layers.norm import RMSNorm
from llama_jax.layers.rope import Llama3Rope, Rope
from llama_jax.layers.stack import Stack
from llama_jax.models.decoder import Decoder
from llama_jax.weights import gguf_rope

ARCHITECTURE = "llama"
LARGEST = 2**31  # of any size in a file
LARGEST_HEAD = 2**14  # far beyond any; the search for a scaling of rope takes time for each pair

# Fields that must have one value, for nothing else is built; absent means this value too.
FIXED = {
    "llama.expert_count": 0,
    "llama.rope.scaling.type": "none",
    "llama.rope.scaling.attn_factor": 1.0,
    "llama.attention.causal": True,
    "llama.attention.scale": 0.0,
    "llama.attention.sliding_window": 0,
    "llama.attention.clamp_kqv": 0.0,
    "llama.attention.max_alibi_bias": 0.0,
    "llama.logit_scale": 0.0,
    "llama.residual_scale": 0.0,
    "llama.embedding_scale": 0.0,
    "llama.final_logit_softcapping": 0.0,
    "llama.tensor_data_layout": "Meta AI original pth",
}
# llama.cpp scales linearly if a factor is there, though no type is.
FACTORS = ("llama.rope.scaling.factor", "llama.rope.scale_linear")


def model(
    fields: Mapping[str, Any],
    shapes: Mapping[str, tuple[int, ...]],
    divisors: np.ndarray | None = None,
    place: Path | str = "the file",
) -> Decoder:
    """The model that a GGUF file of architecture "llama" describes.

    Args:
      fields: the file's.
      shapes: sizes of the file's tensors.
      divisors: what `rope_freqs.weight` holds, if it is there.
      place: the file, for messages.

    Raises:
      FormatError: a missing or impossible number, or a feature that is not known.
    """
    if fields.get("general.architecture") != ARCHITECTURE:
        raise FormatError(
            f"{place}: general.architecture={_brief(fields.get('general.architecture'))}; "
            f"{ARCHITECTURE!r} was expected"
        )
    parts = fields.get("split.count", 0)  # 0 after a merge
    if not (_same(parts, 0) or _same(parts, 1)):
        raise FormatError(
            f"{place} is one of {_brief(parts)} parts; join them with `llama-gguf-split --merge`"
        )
    for key, value in FIXED.items():
        if key in fields and not _same(fields[key], value):
            raise FormatError(f"{place}: {key}={_brief(fields[key])}; only {value!r} is known")
    for key in FACTORS if "llama.rope.scaling.type" not in fields else ():
        if key in fields and not (_same(fields[key], 0.0) or _same(fields[key], 1.0)):
            raise FormatError(f"{place}: {key}={_brief(fields[key])}; only 1.0 is known")

    def size(key: str, default: int | None = None) -> int:
        value = fields.get(key, default)
        if type(value) is not int or not 0 < value < LARGEST:
            raise FormatError(
                f"{place}: {key}={_brief(value)}; a positive whole number was expected"
            )
        return value

    width, heads = size("llama.embedding_length"), size("llama.attention.head_count")
    layers, head_dim = size("llama.block_count"), size("llama.attention.key_length", width // heads)
    if head_dim % 2 or head_dim > LARGEST_HEAD:
        raise FormatError(
            f"{place}: a head of {head_dim}; an even number to {LARGEST_HEAD} was expected"
        )
    for key in ("llama.attention.value_length", "llama.rope.dimension_count"):
        if size(key, head_dim) != head_dim:
            raise FormatError(f"{place}: {key}={fields[key]}; the head's {head_dim} was expected")
    # Before a name is made for each tensor of each layer.
    last = f"blk.{layers - 1}.attn_norm.weight"
    if layers > len(shapes) or last not in shapes:
        raise FormatError(
            f"{place}: llama.block_count={layers}, but the file has {len(shapes)} tensors, and "
            f"{'not ' * (last not in shapes)}{last!r}"
        )
    norm = RMSNorm(_number(fields, "llama.attention.layer_norm_rms_epsilon", None, 0, 1, place))
    try:
        attention = Attention(
            heads,
            size("llama.attention.head_count_kv", heads),
            head_dim,
            rope=_rope(fields, head_dim, divisors, place),
            causal=True,
        )
    except ValueError as error:
        raise FormatError(f"{place}: {error}") from None
    block = Block(attention, SwiGLU(size("llama.feed_forward_length")), norm=norm)
    return Decoder(
        vocab=_vocab(fields, shapes, place),
        width=width,
        stack=Stack((block,), layers),
        tied="output.weight" not in shapes,
        norm=norm,
        context=size("llama.context_length"),
    )


def _rope(
    fields: Mapping[str, Any], head_dim: int, divisors: np.ndarray | None, place: Path | str
) -> Rope:
    theta = _number(fields, "llama.rope.freq_base", 10_000.0, 1, 1e12, place)
    if divisors is None:
        return Rope(theta)
    if divisors.shape != (head_dim // 2,):
        raise FormatError(
            f"{place}: tensor {gguf_rope.TENSOR!r} has shape {list(divisors.shape)}; "
            f"[{head_dim // 2}], a divisor for each rotary pair, was expected"
        )
    return gguf_rope.rope(theta, head_dim, divisors, place)


def _vocab(
    fields: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]], place: Path | str
) -> int:
    """The rows of the embedding, with which whatever else tells of the vocabulary must agree."""
    shape = shapes.get("token_embd.weight", ())
    if len(shape) != 2:
        raise FormatError(f"{place}: tensor 'token_embd.weight' is missing, or has not two axes")
    tokens = fields.get("tokenizer.ggml.tokens")
    told = {"llama.vocab_size": fields.get("llama.vocab_size")}
    told["tokenizer.ggml.tokens"] = len(tokens) if isinstance(tokens, list) else None
    for key, count in told.items():
        if count not in (None, shape[0]):
            raise FormatError(
                f"{place}: {key} tells of {_brief(count)} tokens, 'token_embd.weight' has "
                f"{shape[0]} rows"
            )
    return shape[0]


def _number(
    fields: Mapping[str, Any],
    key: str,
    default: float | None,
    low: float,
    high: float,
    place: Path | str,
) -> float:
    value = fields.get(key, default)
    if type(value) in (int, float) and low < value < high:
        # The float32 of 1e-5 is 9.99999975e-06; the shortest number that rounds to it was meant.
        if low < (meant := float(str(np.float32(value)))) < high:
            return meant
    raise FormatError(
        f"{place}: {key}={_brief(value)}; a number between {low:g} and {high:g} was expected"
    )


def _same(value: Any, expected: Any) -> bool:
    """Whether they are equal, as numbers or as text; a list is equal to nothing."""
    return isinstance(value, bool | int | float | str) and value == expected


def _brief(value: Any) -> str:
    """A value from a file, fit for a message."""
    text = f"a list of {len(value)}" if isinstance(value, list | np.ndarray) else repr(value)
    return text if len(text) <= 80 else f"{text[:80]}…"


def describe(model: Decoder) -> dict[str, int | float | str]:
    """The fields of a GGUF file that describe a model.

    Raises:
      UserError: GGUF's architecture "llama" has no words for it.
    """
    decoder = model
    block, *others = decoder.stack.pattern
    if others or not isinstance(block, Block) or not isinstance(block.ffn, SwiGLU):
        raise UserError(f"{type(block).__name__}: GGUF's {ARCHITECTURE!r} is one block, repeated")
    own, norm = block.attention, decoder.norm
    plain = Attention(own.heads, own.kv_heads, own.head_dim, own.rope, causal=True)
    rope = own.rope
    if (
        block != Block(plain, SwiGLU(block.ffn.hidden), norm=norm)
        or not isinstance(norm, RMSNorm)
        or rope is None
        or type(rope) not in (Rope, Llama3Rope)
        or rope.split != (1,)
        or decoder.positions is not None
        or decoder.context is None
    ):
        raise UserError(
            f"GGUF's {ARCHITECTURE!r} is causal attention with rope and without biases, SwiGLU, "
            f"RMSNorm, and a context length; the model has more or less: {block}, "
            f"positions={decoder.positions}, context={decoder.context}"
        )
    return {
        "general.architecture": ARCHITECTURE,
        "llama.vocab_size": decoder.vocab,
        "llama.context_length": decoder.context,
        "llama.embedding_length": decoder.width,
        "llama.block_count": decoder.stack.repeats,
        "llama.feed_forward_length": block.ffn.hidden,
        "llama.attention.head_count": own.heads,
        "llama.attention.head_count_kv": own.kv_heads,
        "llama.attention.key_length": own.head_dim,
        "llama.attention.value_length": own.head_dim,
        "llama.attention.layer_norm_rms_epsilon": norm.eps,
        "llama.rope.dimension_count": own.head_dim,
        "llama.rope.freq_base": rope.theta,
    }
