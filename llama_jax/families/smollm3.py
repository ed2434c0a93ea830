"""SmolLM3: Llama with no rotary embedding in every fourth layer (NoPE, arXiv:2501.18795)."""

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from llama_jax.families.base import Family, run
from llama_jax.families.gguf import Gguf
from llama_jax.families.gguf_names import PAIRS
from llama_jax.families.huggingface import Fields, HuggingFace
from llama_jax.families.huggingface_numbers import bad, size
from llama_jax.families.huggingface_windows import FULL, SLIDING, layer_types, windows
from llama_jax.families.sizes import Sizes, build
from llama_jax.layers.rope import Rope

if TYPE_CHECKING:
    from llama_jax.config import Run

LISTED, EVERY = "no_rope_layers", "no_rope_layer_interval"


def _without(given: Sizes, every: int = 4) -> Sizes:
    """Every `every`-th layer without the rotary embedding."""
    return replace(given, rotated=tuple((i + 1) % every != 0 for i in range(given.layers)))


def _read(given: Sizes, config: Fields, place: Path | str) -> Sizes:
    listed = config.get(LISTED)  # 1 where there is a rotary embedding, against its name
    if listed is None:
        given = _without(given, size(config, place, EVERY))
    elif (
        isinstance(listed, list)
        and len(listed) == given.layers
        and all(turned in (0, 1) for turned in listed)
    ):
        given = replace(given, rotated=tuple(map(bool, listed)))
    else:
        raise bad(place, LISTED, listed, f"0 or 1 for each of {given.layers} layers")
    slid = config.get("use_sliding_window") and config.get("sliding_window") is not None
    kinds = [SLIDING if slid and not turned else FULL for turned in given.rotated]
    return windows(given, config, place, kinds)


def _write(given: Sizes) -> Fields:
    told = layer_types(given) | {"use_sliding_window": bool(given.windows)}
    return {LISTED: [int(turned) for turned in given.rotated or (True,) * given.layers]} | told


FAMILY = Family(
    name="smollm3",
    about="causal decoder, RMSNorm, grouped-query attention, some layers without rope, SwiGLU",
    huggingface=HuggingFace(
        "smollm3",
        "SmolLM3ForCausalLM",
        defaults={EVERY: 4, "num_key_value_heads": 4, "max_position_embeddings": 32_768}
        | {"rope_theta": 2e6, "tie_word_embeddings": True},
        known=(LISTED, EVERY, "use_sliding_window", "sliding_window", "layer_types")
        + ("max_window_layers",),
        biases=("attention_bias", "mlp_bias"),
        read=_read,
        write=_write,
    ),
    gguf=Gguf("smollm3", PAIRS, _without),  # llama.cpp has the four written out
)


def smollm3_3b() -> "Run":
    """SmolLM3 3B, tied, to 65,536 positions."""
    given = Sizes(
        vocab=128_256, width=2048, layers=36, heads=16, kv_heads=4, head_dim=128, hidden=11_008,
        eps=1e-6, rope=Rope(5e6), context=65_536, tied=True,
    )  # fmt: skip
    return run("smollm3_3b", build(_without(given)))
