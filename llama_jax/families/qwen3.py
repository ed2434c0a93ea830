"""Qwen 3: Llama with normalised q and k, and heads of a size of their own (arXiv:2505.09388)."""

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llama_jax.families.base import Family, run
from llama_jax.families.gguf import Gguf
from llama_jax.families.gguf_names import HALVES
from llama_jax.families.huggingface import Fields, HuggingFace
from llama_jax.families.huggingface_numbers import bad
from llama_jax.families.huggingface_windows import FULL, SLIDING, layer_types, windows
from llama_jax.families.sizes import Sizes, build
from llama_jax.layers.rope import Rope

if TYPE_CHECKING:
    from llama_jax.config import Run


def _read(given: Sizes, config: Fields, place: Path | str) -> Sizes:
    given = replace(given, qk_norm=True)
    if not config.get("use_sliding_window"):
        config, full = {**config, "sliding_window": None}, given.layers
    else:
        full = config["max_window_layers"]  # the first see everything
        if type(full) is not int or full < 0:
            raise bad(place, "max_window_layers", full, "a number of layers")
    kinds = [FULL if i < full else SLIDING for i in range(given.layers)]
    return windows(given, config, place, kinds)


def _write(given: Sizes) -> Fields:
    told = layer_types(given)
    slid = told["sliding_window"] is not None
    return {"use_sliding_window": slid, "max_window_layers": given.layers} | told


FAMILY = Family(
    name="qwen3",
    about="causal decoder, RMSNorm, grouped-query attention with normalised q and k, SwiGLU",
    huggingface=HuggingFace(
        "qwen3",
        "Qwen3ForCausalLM",
        defaults={"head_dim": 128, "num_key_value_heads": 32, "max_position_embeddings": 32_768}
        | {"max_window_layers": 28},
        known=("use_sliding_window", "sliding_window", "max_window_layers", "layer_types"),
        biases=("attention_bias",),
        read=_read,
        write=_write,
    ),
    gguf=Gguf("qwen3", HALVES, lambda given: replace(given, qk_norm=True)),
)


def qwen3_0_6b() -> "Run":
    """Qwen 3 0.6B, tied; its sixteen heads of 128 are wider than its vectors of 1024."""
    return _run("qwen3_0_6b", width=1024, layers=28, heads=16, hidden=3072, tied=True)


def qwen3_8b() -> "Run":
    """Qwen 3 8B (arXiv:2505.09388)."""
    return _run("qwen3_8b", width=4096, layers=36, heads=32, hidden=12_288, tied=False)


def _run(name: str, **own: Any) -> "Run":
    common: dict[str, Any] = {"vocab": 151_936, "kv_heads": 8, "head_dim": 128, "context": 40_960}
    return run(name, build(Sizes(**common, **own, eps=1e-6, rope=Rope(1e6), qk_norm=True)))
