"""What a checkpoint's own file says of rope and the norms, read apart from `weights`.

Plain look-ups of the published fields and nothing else: a fault in how `weights` turns them into a
config shows as a difference.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from llama_jax.families import huggingface_rope
from llama_jax.families.sizes import sizes
from llama_jax.formats.source import inside, read_json
from llama_jax.layers.rope import Llama3Rope
from llama_jax.weights.opened import Checkpoint

ORIGINAL = huggingface_rope.ORIGINAL
LLAMA3 = "llama3"  # the rule of scaling, as config.json calls it


@dataclass(frozen=True)
class Said:
    """The numbers of a file.

    Attributes:
      theta: base of rope.
      scaling: (factor, low, high, original) of Llama 3.1's rule, or None.
      divisors: what divides each pair's frequency, if the file has them in place of the rule.
      eps: what the norms add under the root.
      origin: which fields told them, and what the file left open.
      rule: another rule of scaling, in Hugging Face's words, beside the model's `context`; or None.
    """

    theta: float
    scaling: tuple[float, float, float, float] | None
    divisors: np.ndarray | None
    eps: float
    origin: str
    rule: Mapping[str, Any] | None = None


def said(checkpoint: Checkpoint) -> Said:
    """Looks it up in the file of a checkpoint.

    Raises:
      UserError: the model is made of other blocks.
    """
    sizes(checkpoint.model)
    if checkpoint.kind == "huggingface":
        place = checkpoint.place
        folder = place if place.is_dir() else place.absolute().parent
        return _huggingface(checkpoint, read_json(inside(folder, "config.json")))
    if checkpoint.kind == "gguf":
        return _gguf(checkpoint)
    if checkpoint.kind == "meta":
        return _meta(checkpoint, read_json(inside(checkpoint.place, "params.json")))
    scaling, theta = _rule(checkpoint)
    told = Said(theta, scaling, None, _eps(checkpoint), "run.json, as the model's config itself")
    fields = huggingface_rope.scaling(sizes(checkpoint.model).rope)
    return replace(told, rule=_other(fields or {}, {}, checkpoint))


def _other(
    fields: Mapping[str, Any], config: Mapping[str, Any], checkpoint: Checkpoint
) -> Mapping[str, Any] | None:
    """The rule that fields name, if it is neither Llama 3.1's nor none."""
    kind = fields.get("rope_type", fields.get("type"))
    if kind in (None, "default", "none", LLAMA3):
        return None
    context = checkpoint.model.context
    original = config.get(ORIGINAL) or fields.get(ORIGINAL) or context
    kind = "longrope" if kind == "su" else kind
    return {**fields, "rope_type": kind, ORIGINAL: original, "context": context}


def _huggingface(checkpoint: Checkpoint, config: Mapping[str, Any]) -> Said:
    family = checkpoint.family
    defaults = {} if family is None else family.huggingface.defaults
    config = config if family is None else family.huggingface.spoken(config)
    # transformers 4 had rope_theta and rope_scaling, 5 puts both into rope_parameters.
    field = next((f for f in ("rope_parameters", "rope_scaling") if config.get(f)), None)
    rope: Mapping[str, Any] = config[field] if field else {}
    theta = rope.get("rope_theta", config.get("rope_theta"))
    assumed = float(defaults.get("rope_theta", 10_000.0))
    origin = [f for f in (field, "rope_theta" if "rope_theta" in config else None) if f]
    scaling = None
    if rope.get("rope_type", rope.get("type")) == LLAMA3:
        scaling = (
            float(rope["factor"]),
            float(rope["low_freq_factor"]),
            float(rope["high_freq_factor"]),
            float(rope["original_max_position_embeddings"]),
        )
    open_ = "" if theta is not None else f"; no theta, so transformers' {assumed:,.0f}"
    eps = config.get("rms_norm_eps", defaults.get("rms_norm_eps", 1e-6))  # transformers' default
    told = " and ".join(origin) or "no field of rope"
    origin = f"config.json: {told}{open_}"
    rule = _other(rope, config, checkpoint)
    return Said(float(theta or assumed), scaling, None, float(eps), origin, rule)


def _gguf(checkpoint: Checkpoint) -> Said:
    from llama_jax.weights.gguf import open_gguf

    found = open_gguf(checkpoint.place)
    name = found.fields["general.architecture"]
    field, tensor = f"{name}.rope.freq_base", "rope_freqs.weight"
    eps = float(found.fields[f"{name}.attention.layer_norm_rms_epsilon"])
    origin = field if field in found.fields else f"no {field}, so llama.cpp's 10,000"
    divisors = None
    if tensor in found.source.tensors:
        divisors, origin = np.asarray(found.source.read(tensor), np.float64), f"{origin}, {tensor}"
    theta = float(found.fields.get(field, 10_000.0))
    return Said(theta, None, divisors, eps, origin, _gguf_rule(checkpoint, found, name))


def _gguf_rule(checkpoint: Checkpoint, found: Any, name: str) -> Mapping[str, Any] | None:
    """A GGUF file's rule of scaling in Hugging Face's words."""
    of = f"{name}.rope.scaling."
    told = {
        key.removeprefix(of): value for key, value in found.fields.items() if key[: len(of)] == of
    }
    factor = told.get("factor") or found.fields.get(f"{name}.rope.scale_linear") or 1.0
    kind = told.get("type", "none" if factor == 1 else "linear")
    if kind == "none":
        return None
    rule = {"rope_type": kind, "factor": factor, ORIGINAL: told.get("original_context_length")}
    more = told.get("attn_factor", 1.0)
    if kind == "longrope":
        rule["attention_factor"] = more
        for length in ("short", "long"):
            array = found.source.read(f"rope_factors_{length}.weight")
            rule[f"{length}_factor"] = np.asarray(array, np.float64)
    elif kind == "yarn":
        rule["attention_factor"] = more * (0.1 * math.log(factor) + 1)
    return _other(rule, {}, checkpoint)


def _meta(checkpoint: Checkpoint, params: Mapping[str, Any]) -> Said:
    assert checkpoint.family is not None and checkpoint.family.meta is not None
    base, stretched, high = checkpoint.family.meta.assumed
    theta, eps = params.get("rope_theta"), params.get("norm_eps")
    origin = "params.json"
    if theta is None:
        origin += f"; no rope_theta, so the {base:,.0f} of Meta's program"
    if eps is None:
        origin += "; no norm_eps, so 1e-5"
    scaling = None
    if params.get("use_scaled_rope"):
        # Meta's code has low 1 and original 8192 written out.
        factor = params.get("rope_scaling_factor") or stretched
        scaling = (factor or 0.0, 1.0, params.get("rope_high_freq_factor") or high, 8192.0)
        if factor is None:
            rule, _ = _rule(checkpoint)
            scaling = (rule[0] if rule else 0.0, *scaling[1:])
            origin += "; no factor of the scaling, so that of the published model of these sizes"
    return Said(float(theta or base), scaling, None, float(eps or 1e-5), origin)


def _rule(checkpoint: Checkpoint) -> tuple[tuple[float, float, float, float] | None, float]:
    rope = sizes(checkpoint.model).rope
    if isinstance(rope, Llama3Rope):
        return (rope.factor, rope.low, rope.high, float(rope.original)), rope.theta
    return None, 0.0 if rope is None else rope.theta


def _eps(checkpoint: Checkpoint) -> float:
    return getattr(checkpoint.model.norm, "eps", 0.0)
