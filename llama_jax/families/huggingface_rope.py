"""The rotary embedding in a config.json, in the old notation or the new one.

Old: `rope_theta` and `rope_scaling`; since transformers 5: both in `rope_parameters`.
"""

from pathlib import Path
from typing import Any

from llama_jax.errors import FormatError
from llama_jax.layers.rope import Llama3Rope, Rope
from llama_jax.messages import short

LLAMA3 = "llama3"  # the rule of Llama 3.1, as config.json calls it
SCALING = ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings")
THETA = 10_000.0  # transformers' default


def rope(config: dict[str, Any], place: Path | str = "config.json") -> Rope:
    """The rotary embedding of a config.json.

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
        raise bad(place, "rope_scaling", given, "an object")
    for field in given.keys() - {"rope_type", "type", "rope_theta", *SCALING}:
        if given[field] not in (None, 1.0):  # partial_rotary_factor=1.0 is all of it
            raise bad(
                place, f"rope_scaling.{field[:40]}", given[field], "a file without this field"
            )
    kind = given.get("rope_type", given.get("type", "default"))
    if kind not in ("default", LLAMA3):
        raise bad(place, "rope_type", kind, f"'default' or {LLAMA3!r}")
    base = given.get("rope_theta", config.get("rope_theta", THETA))
    theta = _number(base, "rope_theta", place)
    if kind == "default":
        return Rope(theta)
    factor, low, high, original = (_number(given.get(field), field, place) for field in SCALING)
    try:
        return Llama3Rope(theta, factor=factor, low=low, high=high, original=int(original))
    except ValueError as error:
        raise FormatError(f"{place}: {error}") from None


def scaling(rope: Rope | None) -> dict[str, Any] | None:
    """What a config.json says of the scaling of a rotary embedding; None if it has none."""
    if not isinstance(rope, Llama3Rope):
        return None
    numbers = (rope.factor, rope.low, rope.high, rope.original)
    return {"rope_type": LLAMA3} | dict(zip(SCALING, numbers, strict=True))


def _number(value: Any, field: str, place: Path | str) -> float:
    if type(value) not in (int, float) or not 0 < value < 1e12:
        raise bad(place, field, value, "a positive number")
    return float(value)


def bad(place: Path | str, field: str, value: Any, expected: str) -> FormatError:
    """The error for a field with a value that was not expected."""
    return FormatError(f"{place}: {field}={short(value)}; {expected} was expected")
