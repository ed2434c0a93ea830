"""The rotary embedding in a config.json, in the old notation or the new one.

Old: `rope_theta` and `rope_scaling`, whose kind is `rope_type` or `type`; since transformers 5: all
in `rope_parameters`. What is absent is what transformers takes then (`modeling_rope_utils.py`).
"""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from llama_jax.errors import FormatError
from llama_jax.families.huggingface_numbers import bad, exactly, positive, size
from llama_jax.layers.rope import Llama3Rope, Rope
from llama_jax.layers.rope_scaled import (
    DynamicRope,
    LinearRope,
    LongRope,
    YarnRope,
    longrope_gain,
    yarn_gain,
)

LLAMA3 = "llama3"  # the rule of Llama 3.1, as config.json calls it
ORIGINAL = "original_max_position_embeddings"
SCALING = ("factor", "low_freq_factor", "high_freq_factor", ORIGINAL)
THETA = 10_000.0  # transformers' default
CONTEXT_FIELD = "max_position_embeddings"
CONTEXT = 2048  # likewise
# Fields of any kind that change nothing, and why.
NOTES = {
    "finetuned": "says that the model was trained further after it was stretched",
    ORIGINAL: "of kinds that do not read it: what the context was before",
}


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


@dataclasses.dataclass(frozen=True)
class _Given:
    """The object that describes a scaling, and the config.json around it."""

    fields: dict[str, Any]
    config: dict[str, Any]
    place: Path | str

    @property
    def theta(self) -> float:
        base = self.fields.get("rope_theta", self.config.get("rope_theta", THETA))
        return positive(base, "rope_theta", self.place)

    @property
    def context(self) -> int:
        value = self.config.get(CONTEXT_FIELD)
        value = CONTEXT if value is None else value
        return size({CONTEXT_FIELD: value}, self.place, CONTEXT_FIELD)

    @property
    def original(self) -> int:
        """Positions before it was stretched; where two places tell them, the outer one counts."""
        for source in (self.config, self.fields):
            if source.get(ORIGINAL) is not None:
                return size(source, self.place, ORIGINAL)
        return self.context

    def number(self, field: str, default: float | None = None) -> float:
        value = self.fields.get(field)
        return positive(default if value is None else value, field, self.place)

    def factors(self, field: str) -> tuple[float, ...]:
        value = self.fields.get(field)
        if not isinstance(value, list) or not value:
            raise bad(self.place, field, value, "a list with a number for each rotary pair")
        return tuple(positive(one, field, self.place) for one in value)


def _plain(given: _Given) -> Rope:
    return Rope(given.theta)


def _linear(given: _Given) -> Rope:
    return LinearRope(given.theta, factor=given.number("factor"))


def _dynamic(given: _Given) -> Rope:
    return DynamicRope(given.theta, factor=given.number("factor"), original=given.context)


def _yarn(given: _Given) -> Rope:
    original = given.original
    factor = given.number("factor", given.context / original)
    attention = given.fields.get("attention_factor")
    shares = [given.fields.get(field) for field in ("mscale", "mscale_all_dim")]
    if attention is not None:
        attention = given.number("attention_factor")
    elif all(shares):
        above, below = (given.number(field) for field in ("mscale", "mscale_all_dim"))
        attention = yarn_gain(factor, above) / yarn_gain(factor, below)
    return YarnRope(
        given.theta,
        factor=factor,
        original=original,
        fast=given.number("beta_fast", 32.0),
        slow=given.number("beta_slow", 1.0),
        attention=None if attention == yarn_gain(factor) else attention,
        truncate=exactly(
            given.fields.get("truncate", True), "truncate", (True, False), given.place
        ),
    )


def _longrope(given: _Given) -> Rope:
    original = given.original
    short, long = given.factors("short_factor"), given.factors("long_factor")
    attention = given.fields.get("attention_factor")
    if attention is None:
        # The rule of the paper, of how far the context was stretched.
        gain = longrope_gain(given.number("factor", given.context / original), original)
        attention = float(str(np.float32(gain)))  # as it is multiplied, and as GGUF keeps it
    attention = positive(attention, "attention_factor", given.place)
    return LongRope(given.theta, short=short, long=long, original=original, attention=attention)


def _llama3(given: _Given) -> Rope:
    factor, low, high = (given.number(field) for field in SCALING[:3])
    return Llama3Rope(given.theta, factor=factor, low=low, high=high, original=given.original)


# What config.json calls a kind -> its fields, and what reads them.
KINDS: dict[str, tuple[tuple[str, ...], Callable[[_Given], Rope]]] = {
    "default": ((), _plain),
    "linear": (("factor",), _linear),
    "dynamic": (("factor",), _dynamic),
    "yarn": (
        ("factor", "attention_factor", "beta_fast", "beta_slow", "mscale", "mscale_all_dim")
        + ("truncate",),
        _yarn,
    ),
    "longrope": (("factor", "attention_factor", "short_factor", "long_factor"), _longrope),
    LLAMA3: (SCALING, _llama3),
}
OLDER = {"su": "longrope"}  # names that config.json had before


def _rope(value: Any, config: dict[str, Any], place: Path | str) -> Rope:
    if not isinstance(value, dict):
        raise bad(place, "rope_scaling", value, "an object")
    kind = value.get("rope_type", value.get("type", "default"))
    kind = "default" if kind is None else kind
    named = OLDER.get(kind, kind) if isinstance(kind, str) else None
    if named not in KINDS:
        raise bad(place, "rope_type", kind, f"one of {', '.join(map(repr, KINDS))}")
    fields, read = KINDS[named]
    for field in value.keys() - {"rope_type", "type", "rope_theta", *fields, *NOTES}:
        given = value[field]
        if given is not None and (given is True or given not in (1, False)):
            # partial_rotary_factor=1.0 is all of it
            raise bad(
                place,
                f"rope_scaling.{field[:40]}",
                given,
                f"a file without this field, which {named!r} has not,",
            )
    try:
        return read(_Given(value, config, place))
    except ValueError as error:
        ours = isinstance(error, FormatError)
        raise (error if ours else FormatError(f"{place}: {error}")) from None


def scaling(rope: Rope | None) -> dict[str, Any] | None:
    """What a config.json says of the scaling of a rotary embedding; None if it has none."""
    told: dict[str, Any]
    match rope:
        case Llama3Rope():
            numbers = (rope.factor, rope.low, rope.high, rope.original)
            told = {"rope_type": LLAMA3} | dict(zip(SCALING, numbers, strict=True))
        case LinearRope():
            told = {"rope_type": "linear", "factor": rope.factor}
        case DynamicRope():
            told = {"rope_type": "dynamic", "factor": rope.factor}
        case YarnRope():
            told = {"rope_type": "yarn", "factor": rope.factor, ORIGINAL: rope.original}
            told |= {"beta_fast": rope.fast, "beta_slow": rope.slow}
            told |= {} if rope.attention is None else {"attention_factor": rope.attention}
            told |= {} if rope.truncate else {"truncate": False}
        case LongRope():
            told = {"rope_type": "longrope", ORIGINAL: rope.original}
            told |= {"short_factor": list(rope.short), "long_factor": list(rope.long)}
            told |= {"attention_factor": rope.attention}
        case _:
            return None
    return told
