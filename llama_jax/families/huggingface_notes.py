"""Which fields of a config.json that nobody knows change what a model computes.

By their names most are notes of a program; some names are suspect, and of these some change
nothing, for a reason.
"""

import re
from collections.abc import Callable
from typing import Any

# Of these names, fields that are not known change what a model computes: windows of some layers,
# multipliers, softcapping, partial rotation. Other fields are notes of a program.
SUSPECT = re.compile(
    "window|layer_types|no_rope|softcap|multiplier|expert|alibi|rotary|rope|qk_|bias|scal|quant"
)


def _counts(value: Any) -> bool:
    return type(value) is int and value >= 0


def _all_full(value: Any) -> bool:
    return isinstance(value, list) and set(map(str, value)) == {"full_attention"}


def _is_true(value: Any) -> bool:
    return value is True


# Of the suspect: with which values they change nothing, and why.
HARMLESS: dict[str, tuple[Callable[[Any], bool], str]] = {
    "max_window_layers": (_counts, "it is read with use_sliding_window alone, which must be known"),
    "layer_types": (_all_full, "every layer sees everything, as it does without the field"),
    "scale_attn_weights": (_is_true, "scores are divided by the root of the head's width"),
    "scale_attention_softmax_in_fp32": (_is_true, "a softmax is computed in float32 anyway"),
    "bias_dropout_fusion": (_is_true, "how another program computes, and not what"),
}


def changes(name: str, value: Any) -> bool:
    """Whether a field that is not known may change what a model computes."""
    if not value or (type(value) is float and value == 1.0) or name.startswith("_"):
        return False
    harmless, _ = HARMLESS.get(name, (lambda value: False, ""))
    return bool(SUSPECT.search(name)) and not harmless(value)
