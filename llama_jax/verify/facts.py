"""What was read: format, sizes, numbers; and which published model has the same."""

import math
from collections import Counter
from dataclasses import fields
from typing import Any

from llama_jax import families
from llama_jax.errors import UserError
from llama_jax.families.base import Family
from llama_jax.families.huggingface_rope import scaling
from llama_jax.families.sizes import Sizes, sizes
from llama_jax.models.decoder import Decoder
from llama_jax.verify.declared import Said
from llama_jax.verify.report import Line, Section, unchecked
from llama_jax.weights.opened import Checkpoint
from llama_jax.weights.read import abstract
from llama_jax.weights.write import inference

FORMATS = {
    "huggingface": "Hugging Face (config.json, safetensors)",
    "gguf": "GGUF",
    "meta": "Meta (params.json, consolidated.NN.pth)",
    "run": "a run of llama-jax",
}

PARTS = ("chunk", "norm of q and k", "queries grow", "experts")  # lines of `parts_of`


def facts(checkpoint: Checkpoint, model: Decoder, said: Said) -> Section:
    """What is in the file, and what the model that will compute has of it."""
    size, family = sizes(model), family_of(checkpoint)
    count = sum(math.prod(box.value.shape) for box in abstract(model).values())
    norm = size.eps
    same = math.isclose(norm, said.eps, rel_tol=1e-6)  # GGUF keeps it in float32
    pairs = checkpoint.table is not None and checkpoint.table.interleaved
    order = "pairs side by side" if pairs else "halves"
    kind = "of no family that is known" if family is None else f"{family.name}: {family.about}"
    lines = [
        Line("format", FORMATS[checkpoint.kind]),
        Line("architecture", kind),
        Line(
            "sizes",
            f"width {size.width}, layers {size.layers}, heads {size.heads}, kv heads "
            f"{size.kv_heads}, head {size.head_dim}, feed-forward {size.hidden}, vocabulary "
            f"{size.vocab}",
            numbers=size.letters | {"L": size.layers},
        ),
        Line("parameters", f"{count:,}", numbers={"count": count}),
        Line("output layer", "the embedding (tied)" if size.tied else "its own"),
        Line("q and k in the file", order),
        Line("rope", describe(size.rope) + _without(size)),
        *_windows(size),
        *parts_of(size),
        Line(
            "norm eps",
            f"{norm:g}" if same else f"{norm:g}, and the file says {said.eps:g}",
            "ok" if same else "failed",
            {"eps": norm, "file": said.eps},
        ),
        Line("context", f"{size.context:,}" if size.context else "none stated"),
        _types(checkpoint),
        *_unread(checkpoint),
        _preset(model),
    ]
    return Section("what was read", tuple(lines))


def family_of(checkpoint: Checkpoint) -> Family | None:
    """The family of a checkpoint; of a run the first that has words for its model, or None."""
    if checkpoint.family is not None:
        return checkpoint.family
    try:
        return families.describing(inference(checkpoint.model), "huggingface")
    except UserError:
        return None


def _without(size: Sizes) -> str:
    """How many layers have no rotary embedding, if some have one and some not."""
    bare = size.rotated.count(False)
    return f", but none in {bare} of {size.layers} layers" if bare and size.rope else ""


def _windows(size: Sizes) -> list[Line]:
    """A line on windows of attention, if there are any."""
    counts = Counter(window for window in size.windows if window is not None)
    told = [f"{window:,} in {count} of {size.layers} layers" for window, count in counts.items()]
    return [Line("window", ", ".join(told))] if told else []


def parts_of(size: Sizes) -> list[Line]:
    """Lines on what only some families have: chunks, bare norms, growing queries, experts."""
    layers, bare = size.layers, size.rotated.count(False)
    lines, chunks = [], Counter(chunk for chunk in size.chunks if chunk is not None)
    if chunks:
        told = [f"{chunk:,} in {count} of {layers} layers" for chunk, count in chunks.items()]
        lines.append(Line("chunk", ", ".join(told)))
    if size.bare_norm:
        lines.append(Line("norm of q and k", f"without a scale, in {layers - bare} of {layers}"))
    if (tuning := size.tuning) is not None:
        told = f"by {tuning.growth:g} log(1 + steps of {tuning.floor:,.0f} positions)"
        lines.append(Line("queries grow", f"{told}, in {bare} of {layers} layers"))
    if (routed := size.routed) is not None:
        shared = "" if routed.shared is None else " and a shared one"
        count = layers - size.experts.count(None)
        told = f"{routed.top_k} of {routed.experts}{shared} a token, each of {routed.hidden:,}"
        lines.append(Line("experts", f"{told}, in {count} of {layers} layers"))
    return lines


def _unread(checkpoint: Checkpoint) -> list[Line]:
    """A line on tensors of the file that are no weights of the model, if there are any."""
    found = checkpoint.unused
    return [Line("not read", f"{len(found)} tensor(s), e.g. {found[0]}")] if found else []


def describe(rope: Any) -> str:
    """Type and numbers of a rotary embedding."""
    if rope is None:
        return "none"
    kind = (scaling(rope) or {"rope_type": "plain"})["rope_type"]
    values = {field.name: getattr(rope, field.name) for field in fields(rope)}
    told = [f"{k} {_brief(v)}" for k, v in values.items() if k != "split" and v is not None]
    return ", ".join([kind, *told])


def _brief(value: Any) -> str:
    """A number of a rotary embedding, or the range of many."""
    if isinstance(value, tuple):
        return f"{min(value):g} to {max(value):g}"
    return str(value) if isinstance(value, int) else f"{value:.10g}"


def _types(checkpoint: Checkpoint) -> Line:
    if checkpoint.source is None:
        return unchecked("types of the tensors", "a run's checkpoint is read by orbax, as a whole")
    kinds = Counter(tensor.dtype for tensor in checkpoint.source.tensors.values())
    text = ", ".join(f"{count} of {kind}" for kind, count in kinds.most_common())
    return Line("types of the tensors", text, numbers=dict(kinds))


def constants(model: Decoder) -> dict[str, Any]:
    """What two models of the same sizes can differ in."""
    size = sizes(model)
    told = {line.name: line.text for line in parts_of(size)}
    return {
        "rope": describe(size.rope) + _without(size),
        "window": ", ".join(line.text for line in _windows(size)) or "none",
        "norm eps": size.eps,
        "tied": size.tied,
        "context": size.context,
    } | {name: told.get(name, "none") for name in PARTS}


def _preset(model: Decoder) -> Line:
    """Published models of these sizes, and in what they differ."""
    from llama_jax import presets

    mine, found = constants(model), {}
    for name in presets.NAMES:
        theirs = presets.get(name).model
        if not isinstance(theirs, Decoder) or theirs.context is None:
            continue
        if _sizes(theirs) == _sizes(model):
            found[name] = {k: v for k, v in constants(theirs).items() if v != mine[k]}
    equal = [name for name, difference in found.items() if not difference]
    if equal:
        return Line("preset", f"equals {', '.join(equal)}", numbers={"equal": equal})
    if not found:
        return Line("preset", "none has these sizes")
    nearest = min(found, key=lambda name: len(found[name]))
    differs = "; ".join(f"{k}: {mine[k]}, there {v}" for k, v in found[nearest].items())
    return Line("preset", f"sizes of {nearest}; {differs}", "differs", found[nearest])


def _sizes(model: Decoder) -> tuple:
    try:
        size = sizes(model)
    except UserError:
        return ()
    return (
        *size.letters.values(),
        size.layers,
        size.qk_norm,
        size.bias,
        size.out_bias,
        size.ffn_bias,
    )
