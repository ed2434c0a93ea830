"""Code World Model, of Meta: three of four layers with a window (arXiv:2510.02387)."""

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from llama_jax.families.base import Family, run
from llama_jax.families.huggingface import Fields, HuggingFace
from llama_jax.families.huggingface_windows import FULL, SLIDING, layer_types, windows
from llama_jax.families.sizes import Sizes, build
from llama_jax.layers.rope import Llama3Rope

if TYPE_CHECKING:
    from llama_jax.config import Run

ROPE = Llama3Rope(1e6, factor=16.0)


def _read(given: Sizes, config: Fields, place: Path | str) -> Sizes:
    if config.get("rope_parameters") is None and config.get("rope_scaling") is None:
        given = replace(given, rope=ROPE)  # transformers' default
    kinds = [SLIDING if i % 4 else FULL for i in range(given.layers)]
    return windows(given, config, place, kinds)


FAMILY = Family(
    name="cwm",
    about="causal decoder, RMSNorm, grouped-query attention with windows in some layers, SwiGLU",
    huggingface=HuggingFace(
        "cwm",
        "CwmForCausalLM",
        defaults={"head_dim": 128, "num_key_value_heads": 8, "max_position_embeddings": 131_072}
        | {"rope_theta": 1e6, "rms_norm_eps": 1e-5, "sliding_window": 8192},
        known=("sliding_window", "layer_types"),
        read=_read,
        write=layer_types,
    ),
)


def cwm_32b() -> "Run":
    """CWM 32B: a window of 8192 in three of four layers (arXiv:2510.02387)."""
    given = Sizes(
        vocab=128_256, width=6144, layers=64, heads=48, kv_heads=8, head_dim=128, hidden=21_504,
        eps=1e-5, rope=ROPE, context=131_072, tied=False, windows=(None, 8192, 8192, 8192) * 16,
    )  # fmt: skip
    return run("cwm_32b", build(given))
