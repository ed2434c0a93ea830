"""Hugging Face's folders: config.json to a model's config and back.

Only what is understood is accepted: a field that would change the numbers and is not known (another
activation, another kind of rope scaling, biases) is refused by name.
"""

from pathlib import Path
from typing import Any

from llama_jax.errors import FormatError
from llama_jax.layers.attention import Attention
from llama_jax.layers.block import Block
from llama_jax.layers.mlp import SwiGLU
from llama_jax.layers.norm import RMSNorm
from llama_jax.layers.rope import Llama3Rope, Rope
from llama_jax.layers.stack import Stack
from llama_jax.models.decoder import Decoder, DecoderLM

# Fields that must have one value, for nothing else is built; absent means this value too.
FIXED = {
    "hidden_act": "silu",
    "attention_bias": False,
    "mlp_bias": False,
    "pretraining_tp": 1,
}
LARGEST = 2**31  # of any size in a config


def model(config: dict[str, Any], place: Path | str = "config.json") -> DecoderLM:
    """The model that a config.json of architecture "llama" describes.

    Args:
      config: the JSON object.
      place: the file, for messages.

    Raises:
      FormatError: a missing or impossible number, or a feature that is not known.
    """
    kind = config.get("model_type")
    if kind != "llama":
        raise FormatError(f"{place}: model_type {kind!r}; 'llama' was expected")
    for field, value in FIXED.items():
        # pretraining_tp only says in how many pieces the product was computed.
        if field != "pretraining_tp" and config.get(field, value) != value:
            raise FormatError(f"{place}: {field}={config[field]!r}; only {value!r} is known")

    def size(field: str, default: int | None = None) -> int:
        value = config.get(field)
        value = default if value is None else value
        if type(value) is not int or not 0 < value < LARGEST:
            raise FormatError(f"{place}: {field}={value!r}; a positive whole number was expected")
        return value

    width, heads = size("hidden_size"), size("num_attention_heads")
    eps = config.get("rms_norm_eps", 1e-6)
    if type(eps) not in (int, float) or not 0 < eps < 1:
        raise FormatError(f"{place}: rms_norm_eps={eps!r}; a small positive number was expected")
    norm = RMSNorm(float(eps))
    try:
        attention = Attention(
            heads,
            size("num_key_value_heads", heads),
            size("head_dim", width // heads),
            rope=rope(config, place),
            causal=True,
        )
    except ValueError as error:
        raise FormatError(f"{place}: {error}") from None
    block = Block(attention, SwiGLU(size("intermediate_size")), norm=norm)
    return DecoderLM(
        Decoder(
            vocab=size("vocab_size"),
            width=width,
            stack=Stack((block,), size("num_hidden_layers")),
            tied=bool(config.get("tie_word_embeddings", False)),
            norm=norm,
            context=size("max_position_embeddings"),
        )
    )


def rope(config: dict[str, Any], place: Path | str = "config.json") -> Rope:
    """The rotary embedding of a config.json, in the old notation or the new one.

    Old: `rope_theta` and `rope_scaling`; since transformers 5: both in `rope_parameters`.

    Raises:
      FormatError: a kind of scaling that is not known, or a number that is missing.
    """
    given = config.get("rope_parameters") or config.get("rope_scaling") or {}
    if not isinstance(given, dict):
        raise FormatError(f"{place}: rope scaling {given!r}; an object was expected")
    kind = given.get("rope_type", given.get("type", "default"))
    theta = _number(
        given.get("rope_theta", config.get("rope_theta", 10_000.0)), "rope_theta", place
    )
    if kind == "default":
        return Rope(theta)
    if kind != "llama3":
        raise FormatError(
            f"{place}: rope_type {kind!r} is not known ('default' and 'llama3' are); the numbers "
            "would be wrong"
        )
    fields = ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings")
    factor, low, high, original = (_number(given.get(field), field, place) for field in fields)
    try:
        return Llama3Rope(theta, factor=factor, low=low, high=high, original=int(original))
    except ValueError as error:
        raise FormatError(f"{place}: {error}") from None


def _number(value: Any, field: str, place: Path | str) -> float:
    if type(value) not in (int, float) or not 0 < value < 1e12:
        raise FormatError(f"{place}: {field}={value!r}; a positive number was expected")
    return float(value)
