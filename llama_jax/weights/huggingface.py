"""Hugging Face's folders: config.json to a model's config.

Only what is understood is accepted: a field that would change the numbers and is not known (another
activation, another kind of rope scaling, biases) is refused by name.
"""

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from llama_jax.errors import FormatError
from llama_jax.layers.attention import Attention
from llama_jax.layers.block import Block
from llama_jax.layers.mlp import SwiGLU
from llama_jax.layers.norm import RMSNorm
from llama_jax.layers.rope import Llama3Rope, Rope
from llama_jax.layers.stack import Stack
from llama_jax.models.decoder import Decoder

# Fields that must have one of these values, for nothing else is built; absent means the first.
FIXED = {
    "hidden_act": ("silu", "swish"),  # two names of one function
    "attention_bias": (False,),
    "mlp_bias": (False,),
}
# Of these names, fields that are not known change what a model computes: Mistral's sliding_window,
# Granite's multipliers, Gemma's softcapping, partial rotation. Other fields are notes of a program.
SUSPECT = re.compile("window|softcap|multiplier|expert|alibi|rotary|rope|qk_|bias|scal|quant")
KNOWN = {*FIXED, "rope_theta", "rope_scaling", "rope_parameters"}
SCALING = ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings")
LARGEST = 2**31  # of any size in a config
MOST_LAYERS = 10_000

# Tables of rope that old files carry along; ours are computed.
BUFFERS = (
    "model.rotary_emb.inv_freq",
    "model.layers.{layer}.self_attn.rotary_emb.inv_freq",
)


def model(config: dict[str, Any], place: Path | str = "config.json") -> Decoder:
    """The model that a config.json of architecture "llama" describes.

    Args:
      config: the JSON object.
      place: the file, for messages.

    Raises:
      FormatError: a missing or impossible number, or a feature that is not known.
    """
    _check(config, place)

    def size(field: str, default: int | None = None, most: int = LARGEST) -> int:
        value = config.get(field)
        value = default if value is None else value
        if type(value) is not int or not 0 < value <= most:
            raise _bad(place, field, value, f"a whole number from 1 to {most:,}")
        return value

    width, heads = size("hidden_size"), size("num_attention_heads")
    head_dim = size("head_dim", width // heads)
    if config.get("head_dim") is None and width % heads:
        raise _bad(place, "num_attention_heads", heads, f"a divisor of hidden_size={width}")
    if head_dim % 2:
        raise _bad(place, "head_dim", head_dim, "an even number")
    eps = config.get("rms_norm_eps", 1e-6)
    if type(eps) not in (int, float) or not 0 < eps < 1:
        raise _bad(place, "rms_norm_eps", eps, "a small positive number")
    tied = config.get("tie_word_embeddings")
    if tied not in (None, False, True):
        raise _bad(place, "tie_word_embeddings", tied, "true or false")
    norm = RMSNorm(float(eps))
    kv_heads = size("num_key_value_heads", heads)
    try:
        attention = Attention(heads, kv_heads, head_dim, rope=rope(config, place), causal=True)
    except ValueError as error:
        raise (
            error if isinstance(error, FormatError) else FormatError(f"{place}: {error}")
        ) from None
    block = Block(attention, SwiGLU(size("intermediate_size")), norm=norm)
    return Decoder(
        vocab=size("vocab_size"),
        width=width,
        stack=Stack((block,), size("num_hidden_layers", most=MOST_LAYERS)),
        tied=bool(tied),
        norm=norm,
        context=size("max_position_embeddings", 2048),  # transformers' default
    )


def rope(config: dict[str, Any], place: Path | str = "config.json") -> Rope:
    """The rotary embedding of a config.json, in the old notation or the new one.

    Old: `rope_theta` and `rope_scaling`; since transformers 5: both in `rope_parameters`.

    Raises:
      FormatError: a kind of scaling that is not known, a number that is missing, or two notations
        that do not agree.
    """
    given = [config.get(field) for field in ("rope_parameters", "rope_scaling")]
    found = [_rope(value, config, place) for value in given if value is not None] or [
        _rope({}, config, place)
    ]
    if len(set(found)) > 1:
        raise FormatError(f"{place}: rope_parameters and rope_scaling do not agree: {found}")
    return found[0]


def _rope(given: Any, config: dict[str, Any], place: Path | str) -> Rope:
    if not isinstance(given, dict):
        raise _bad(place, "rope_scaling", given, "an object")
    for field in given.keys() - {"rope_type", "type", "rope_theta", *SCALING}:
        if given[field] not in (None, 1.0):  # partial_rotary_factor=1.0 is all of it
            raise _bad(place, f"rope_scaling.{field[:40]}", given[field], "no such field")
    kind = given.get("rope_type", given.get("type", "default"))
    if kind not in ("default", "llama3"):
        raise _bad(place, "rope_type", kind, "'default' or 'llama3'")
    base = given.get("rope_theta", config.get("rope_theta", 10_000.0))
    theta = _number(base, "rope_theta", place)
    if kind == "default":
        return Rope(theta)
    factor, low, high, original = (_number(given.get(field), field, place) for field in SCALING)
    try:
        return Llama3Rope(theta, factor=factor, low=low, high=high, original=int(original))
    except ValueError as error:
        raise FormatError(f"{place}: {error}") from None


def unused(model: Decoder, names: Iterable[str]) -> tuple[str, ...]:
    """Tensors that a checkpoint may have and that are not read, of those it has."""
    layers = range(model.stack.repeats)
    buffers = {buffer.format(layer=layer) for buffer in BUFFERS for layer in layers}
    return tuple(name for name in names if name in buffers)


def _check(config: dict[str, Any], place: Path | str) -> None:
    """Refuses what is not Llama, and fields that would change the numbers."""
    kind = config.get("model_type")
    if kind != "llama":
        raise _bad(place, "model_type", kind, "'llama'")
    built = config.get("architectures")
    if built and "llamaforcausallm" not in str(built).lower():
        raise _bad(place, "architectures", built, "['LlamaForCausalLM']")
    if quantised := config.get("quantization_config"):
        method = quantised.get("quant_method") if isinstance(quantised, dict) else quantised
        raise FormatError(
            f"{place}: quantization_config of {_short(method)}; GPTQ, AWQ and other quantised "
            "safetensors are not read; take the original checkpoint, or a GGUF file"
        )
    for field, values in FIXED.items():
        if (value := config.get(field)) is not None and value not in values:
            raise _bad(place, field, value, repr(values[0]))
    for field, value in config.items():
        neutral = not value or (type(value) is float and value == 1.0)
        if not (neutral or field in KNOWN or field.startswith("_")) and SUSPECT.search(field):
            raise _bad(place, field[:80], value, "no such field; its meaning is not known")


def _number(value: Any, field: str, place: Path | str) -> float:
    if type(value) not in (int, float) or not 0 < value < 1e12:
        raise _bad(place, field, value, "a positive number")
    return float(value)


def _bad(place: Path | str, field: str, value: Any, expected: str) -> FormatError:
    return FormatError(f"{place}: {field}={_short(value)}; {expected} was expected")


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."
