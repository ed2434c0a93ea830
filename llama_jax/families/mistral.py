"""Mistral 7B: Llama with a window on every layer, in its first version (arXiv:2310.06825)."""

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from llama_jax.families.base import Family, run
from llama_jax.families.huggingface import Fields, HuggingFace
from llama_jax.families.huggingface_numbers import size
from llama_jax.families.sizes import Sizes, build
from llama_jax.layers.rope import Rope

if TYPE_CHECKING:
    from llama_jax.config import Run

WINDOW = "sliding_window"  # keys that a query sees, itself one of them; null since version 0.2


def _read(given: Sizes, config: Fields, place: Path | str) -> Sizes:
    if config.get(WINDOW) is None:
        return given
    return replace(given, windows=(size(config, place, WINDOW),) * given.layers)


def _write(given: Sizes) -> Fields:
    return {WINDOW: given.windows[0] if given.windows else None}


# Files of GGUF are of architecture "llama", which has no window.
FAMILY = Family(
    name="mistral",
    about="causal decoder, RMSNorm, grouped-query attention with a window, SwiGLU",
    huggingface=HuggingFace(
        "mistral",
        "MistralForCausalLM",
        defaults={WINDOW: 4096, "num_key_value_heads": 8, "max_position_embeddings": 131_072},
        known=(WINDOW,),
        read=_read,
        write=_write,
    ),
)


def mistral_7b() -> "Run":
    """Mistral 7B 0.1, with a window of 4096 (arXiv:2310.06825)."""
    given = replace(_7B, windows=(4096,) * _7B.layers)
    return run("mistral_7b", build(given))


def mistral_7b_v3() -> "Run":
    """Mistral 7B 0.3, without a window."""
    return run("mistral_7b_v3", build(replace(_7B, vocab=32_768, rope=Rope(1e6))))


_7B = Sizes(
    vocab=32_000,
    width=4096,
    layers=32,
    heads=32,
    kv_heads=8,
    head_dim=128,
    hidden=14_336,
    eps=1e-5,
    rope=Rope(),
    context=32_768,
    tied=False,
)
