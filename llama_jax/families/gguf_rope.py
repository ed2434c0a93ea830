"""The scaling of rope as GGUF keeps it, in fields and tensors; as llama.cpp reads them.

    none, linear     `rope.scaling.type` and `.factor`
    yarn             the same, the context before, and `.attn_factor`, by which the gain of the
                     paper is multiplied once more
    longrope         the context before, `.attn_factor`, and a tensor for short and for long texts
    Llama 3.1's      the tensor `rope_freqs.weight`: see `gguf_llama3`

A base that grows with the text ("dynamic") has no words there. With longrope llama.cpp takes the
factors for long texts where it was given room for one; here the length of the text decides.
"""

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from llama_jax.errors import FormatError
from llama_jax.families import gguf_llama3
from llama_jax.families.gguf_fields import Fields, brief, number, same
from llama_jax.layers.rope import Llama3Rope, Rope
from llama_jax.layers.rope_scaled import LinearRope, LongRope, YarnRope, yarn_gain

DIVISORS = gguf_llama3.TENSOR
SHORT, LONG = "rope_factors_short.weight", "rope_factors_long.weight"
TENSORS = (DIVISORS, LONG, SHORT)
KINDS = ("none", "linear", "yarn", "longrope")
# What must have one of these values; absent means the first. Of these architectures llama.cpp
# reads no yarn_* field, whatever a file says: it keeps 32 waves and stretches 1. Of attn_factor it
# makes a gain whatever the kind is.
WAVES = (32.0, 1.0)
YARN = {"yarn_ext_factor": (-1.0, 1.0), "yarn_log_multiplier": (0.0,), "yarn_attn_factor": (1.0,)}
YARN |= {"yarn_beta_fast": WAVES[:1], "yarn_beta_slow": WAVES[1:]}
UNSCALED = {"attn_factor": (1.0,)}

Arrays = Mapping[str, np.ndarray]


def read(
    fields: Fields, arch: str, head_dim: int, context: int, arrays: Arrays, place: Path | str
) -> Rope:
    """The rotary embedding of a file.

    Args:
      fields: the file's.
      arch: llama.cpp's name of the architecture, with which they begin.
      head_dim: H.
      context: positions of the model.
      arrays: what those of `TENSORS` hold that are there.
      place: the file, for messages.

    Raises:
      FormatError: a kind of scaling that is not known, or numbers or tensors that do not fit it.
    """
    try:
        return _read(fields, arch, head_dim, context, arrays, place)
    except ValueError as error:
        ours = isinstance(error, FormatError)
        raise (error if ours else FormatError(f"{place}: {error}")) from None


def _read(
    fields: Fields, arch: str, head_dim: int, context: int, arrays: Arrays, place: Path | str
) -> Rope:
    theta = number(fields, f"{arch}.rope.freq_base", 10_000.0, (1, 1e12), place)
    of = f"{arch}.rope.scaling"

    def told(name: str, default: float) -> float:
        return number(fields, f"{of}.{name}", default, (0, 1e9), place)

    linear = _linear(fields, arch, place)
    # llama.cpp scales linearly if a factor is there, though no type is.
    kind = fields.get(f"{of}.type", "linear" if linear != 1 else "none")
    if not isinstance(kind, str) or kind not in KINDS:
        raise FormatError(
            f"{place}: {of}.type={brief(kind)}; one of {', '.join(KINDS)} was expected"
        )
    kind = "none" if kind == "linear" and linear == 1 else kind
    _check(arrays, kind, head_dim, place)
    fixed = {"yarn": YARN, "longrope": {}}.get(kind, UNSCALED)
    for name, values in fixed.items():
        value = fields.get(f"{of}.{name}", values[0])
        if not any(same(value, one) for one in values):
            raise FormatError(f"{place}: {of}.{name}={brief(value)}; only {values[-1]} is known")
    if kind == "none":
        if DIVISORS not in arrays:
            return Rope(theta)
        return gguf_llama3.rope(theta, head_dim, arrays[DIVISORS], place)
    if kind == "linear":
        return LinearRope(theta, factor=linear)
    original = int(told("original_context_length", context))
    gain = told("attn_factor", 1.0)
    if kind == "longrope":
        short, long = (tuple(map(_meant, arrays[name])) for name in (SHORT, LONG))
        return LongRope(theta, short=short, long=long, original=original, attention=gain)
    return YarnRope(
        theta,
        factor=linear,
        original=original,
        attention=None if gain == 1 else gain * yarn_gain(linear),
    )


def _linear(fields: Fields, arch: str, place: Path | str) -> float:
    """How far wavelengths are stretched; 0 means 1 there."""
    for name in ("rope.scaling.factor", "rope.scale_linear"):
        if not same(fields.get(f"{arch}.{name}", 0), 0):
            return number(fields, f"{arch}.{name}", None, (0, 1e9), place)
    return 1.0


def _check(arrays: Arrays, kind: str, head_dim: int, place: Path | str) -> None:
    """Refuses tensors of another kind of scaling, or of another size."""
    wanted = {"longrope": {SHORT, LONG}, "none": set(arrays) & {DIVISORS}}.get(kind, set())
    if set(arrays) != wanted:
        raise FormatError(
            f"{place}: tensors of rope are {sorted(arrays)}; for a scaling of {kind!r} "
            f"{sorted(wanted)} was expected"
        )
    for name, array in arrays.items():
        if array.shape != (head_dim // 2,):
            raise FormatError(
                f"{place}: tensor {name!r} has shape {list(array.shape)}; [{head_dim // 2}], a "
                "divisor for each rotary pair, was expected"
            )


def has(rope: Rope | None) -> bool:
    """Whether a file can say it."""
    kinds = (Rope, Llama3Rope, LinearRope, YarnRope, LongRope)
    if type(rope) not in kinds or rope.split != (1,):  # pyright: ignore
        return False
    return not isinstance(rope, YarnRope) or (rope.truncate and (rope.fast, rope.slow) == WAVES)


def fields(rope: Rope | None) -> dict[str, int | float | str]:
    """The fields of a file that tell of a scaling, without the name of the architecture."""
    told: dict[str, int | float | str] = {}
    match rope:
        case LinearRope():
            told = {"type": "linear", "factor": rope.factor}
        case YarnRope():
            told = {"type": "yarn", "factor": rope.factor, "original_context_length": rope.original}
            if rope.attention is not None:
                told["attn_factor"] = rope.attention / yarn_gain(rope.factor)
        case LongRope():
            told = {"type": "longrope", "original_context_length": rope.original}
            told["attn_factor"] = rope.attention
        case _:
            pass
    return {f"rope.scaling.{key}": value for key, value in told.items()}


def arrays(rope: Rope | None, head_dim: int) -> dict[str, np.ndarray]:
    """What tensors of a file hold of a scaling, float32 [H/2] each."""
    if isinstance(rope, Llama3Rope):
        return {DIVISORS: gguf_llama3.divisors(rope, head_dim)}
    if isinstance(rope, LongRope):
        lists = (LONG, rope.long), (SHORT, rope.short)
        return {name: np.array(values, np.float32) for name, values in lists}
    return {}


def _meant(value: np.float32) -> float:
    """The shortest number that rounds to a float32."""
    return float(str(np.float32(value)))
