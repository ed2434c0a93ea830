"""Fields of a GGUF file, checked: what is not known, and numbers that cannot be."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from llama_jax.errors import FormatError
from llama_jax.messages import short

Fields = Mapping[str, Any]

# Fields below the architecture's name that must have one value, for nothing else is built; absent
# means this value too.
FIXED = {
    "expert_count": 0,
    "attention.causal": True,
    "attention.scale": 0.0,
    "attention.sliding_window": 0,
    "attention.clamp_kqv": 0.0,
    "attention.max_alibi_bias": 0.0,
    "logit_scale": 0.0,
    "residual_scale": 0.0,
    "embedding_scale": 0.0,
    "final_logit_softcapping": 0.0,
    "tensor_data_layout": "Meta AI original pth",
}


def check(fields: Fields, arch: str, place: Path | str) -> None:
    """Refuses parts of a file, and fields that would change the numbers.

    Raises:
      FormatError: names the field.
    """
    parts = fields.get("split.count", 0)  # 0 after a merge
    if not (same(parts, 0) or same(parts, 1)):
        raise FormatError(
            f"{place} is one of {brief(parts)} parts; join them with `llama-gguf-split --merge`"
        )
    for field, value in FIXED.items():
        key = f"{arch}.{field}"
        if key in fields and not same(fields[key], value):
            raise FormatError(f"{place}: {key}={brief(fields[key])}; only {value!r} is known")


def vocabulary(
    fields: Fields, arch: str, shapes: Mapping[str, tuple[int, ...]], place: Path | str
) -> int:
    """The rows of the embedding, with which whatever else tells of the vocabulary must agree.

    Raises:
      FormatError: it does not.
    """
    shape = shapes.get("token_embd.weight", ())
    if len(shape) != 2:
        raise FormatError(f"{place}: tensor 'token_embd.weight' is missing, or has not two axes")
    tokens = fields.get("tokenizer.ggml.tokens")
    told = {f"{arch}.vocab_size": fields.get(f"{arch}.vocab_size")}
    told["tokenizer.ggml.tokens"] = len(tokens) if isinstance(tokens, list) else None
    for key, count in told.items():
        if count not in (None, shape[0]):
            raise FormatError(
                f"{place}: {key} tells of {brief(count)} tokens, 'token_embd.weight' has "
                f"{shape[0]} rows"
            )
    return shape[0]


def number(
    fields: Fields,
    key: str,
    default: float | None,
    bounds: tuple[float, float],
    place: Path | str,
) -> float:
    """A number between two bounds, as it was meant.

    Raises:
      FormatError: it is none, or beyond them.
    """
    low, high = bounds
    value = fields.get(key, default)
    if type(value) in (int, float) and low < value < high:
        # The float32 of 1e-5 is 9.99999975e-06; the shortest number that rounds to it was meant.
        if low < (meant := float(str(np.float32(value)))) < high:
            return meant
    raise FormatError(
        f"{place}: {key}={brief(value)}; a number between {low:g} and {high:g} was expected"
    )


def same(value: Any, expected: Any) -> bool:
    """Whether they are equal, as numbers or as text; a list is equal to nothing."""
    return isinstance(value, bool | int | float | str) and value == expected


def brief(value: Any) -> str:
    """A value from a file, fit for a message."""
    listed = isinstance(value, list | np.ndarray)
    return f"a list of {len(value)}" if listed else short(value)
