"""What was read: format, sizes, numbers; and which published model has the same."""

import math
from collections import Counter
from typing import Any

from llama_jax.errors import UserError
from llama_jax.layers.rope import Llama3Rope
from llama_jax.models.decoder import Decoder
from llama_jax.verify.declared import Said, rope_of
from llama_jax.verify.report import Line, Section, unchecked
from llama_jax.weights.names import HUGGING_FACE
from llama_jax.weights.opened import Checkpoint
from llama_jax.weights.read import sizes, tensors

FORMATS = {
    "huggingface": "Hugging Face (config.json, safetensors)",
    "gguf": "GGUF",
    "meta": "Meta (params.json, consolidated.NN.pth)",
    "run": "a run of llama-jax",
}
INTERLEAVED = ("gguf", "meta")  # others hold halves


def facts(checkpoint: Checkpoint, model: Decoder, said: Said) -> Section:
    """What is in the file, and what the model that will compute has of it."""
    size, decoder = sizes(model), model
    count = sum(math.prod(name.shape) for name in tensors(model, HUGGING_FACE))
    norm = getattr(decoder.norm, "eps", 0.0)
    same = math.isclose(norm, said.eps, rel_tol=1e-6)  # GGUF keeps it in float32
    order = "pairs side by side" if checkpoint.kind in INTERLEAVED else "halves"
    lines = [
        Line("format", FORMATS[checkpoint.kind]),
        Line("architecture", "llama: causal decoder, RMSNorm, grouped-query attention, SwiGLU"),
        Line(
            "sizes",
            f"width {size['D']}, layers {decoder.stack.repeats}, heads {size['N']}, kv heads "
            f"{size['K']}, head {size['H']}, feed-forward {size['F']}, vocabulary {size['V']}",
            numbers=size | {"L": decoder.stack.repeats},
        ),
        Line("parameters", f"{count:,}", numbers={"count": count}),
        Line("output layer", "the embedding (tied)" if decoder.tied else "its own"),
        Line("q and k in the file", order),
        Line("rope", describe(rope_of(model))),
        Line(
            "norm eps",
            f"{norm:g}" if same else f"{norm:g}, and the file says {said.eps:g}",
            "ok" if same else "failed",
            {"eps": norm, "file": said.eps},
        ),
        Line("context", f"{decoder.context:,}" if decoder.context else "none stated"),
        _types(checkpoint),
        _preset(model),
    ]
    return Section("what was read", tuple(lines))


def describe(rope: Any) -> str:
    """Type and numbers of a rotary embedding."""
    if rope is None:
        return "none"
    if not isinstance(rope, Llama3Rope):
        return f"plain, theta {rope.theta:g}"
    return (
        f"llama3, theta {rope.theta:g}, factor {rope.factor:g}, low {rope.low:g}, high "
        f"{rope.high:g}, original {rope.original}"
    )


def _types(checkpoint: Checkpoint) -> Line:
    if checkpoint.source is None:
        return unchecked("types of the tensors", "a run's checkpoint is read by orbax, as a whole")
    kinds = Counter(tensor.dtype for tensor in checkpoint.source.tensors.values())
    text = ", ".join(f"{count} of {kind}" for kind, count in kinds.most_common())
    return Line("types of the tensors", text, numbers=dict(kinds))


def constants(model: Decoder) -> dict[str, Any]:
    """What two models of the same sizes can differ in."""
    rope = rope_of(model)
    return {
        "rope": describe(rope),
        "norm eps": getattr(model.norm, "eps", None),
        "tied": model.tied,
        "context": model.context,
    }


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
        return (*sizes(model).values(), model.stack.repeats)
    except UserError:
        return ()
