"""A family that the library lacks, Qwen 2: biases of q, k and v (arXiv:2407.10671).

`test_added_family` adds it as CONTRIBUTING says, by one file and a name in the list.
"""

from dataclasses import replace
from pathlib import Path

from llama_jax.families.base import Family
from llama_jax.families.gguf import Gguf
from llama_jax.families.gguf_names import HALVES
from llama_jax.families.huggingface import Fields, HuggingFace
from llama_jax.families.huggingface_windows import FULL, SLIDING, layer_types, windows
from llama_jax.families.sizes import Sizes


def _biased(given: Sizes) -> Sizes:
    return replace(given, bias=True)


def _read(given: Sizes, config: Fields, place: Path | str) -> Sizes:
    given = _biased(given)
    if not config.get("use_sliding_window"):
        config, full = {**config, "sliding_window": None}, given.layers
    else:
        full = config["max_window_layers"]
    kinds = [FULL if i < full else SLIDING for i in range(given.layers)]
    return windows(given, config, place, kinds)


def _write(given: Sizes) -> Fields:
    told = layer_types(given)
    slid = told["sliding_window"] is not None
    return {"use_sliding_window": slid, "max_window_layers": given.layers} | told


FAMILY = Family(
    name="qwen2",
    about="causal decoder, RMSNorm, grouped-query attention with biases, SwiGLU",
    huggingface=HuggingFace(
        "qwen2",
        "Qwen2ForCausalLM",
        defaults={"num_key_value_heads": 32, "max_position_embeddings": 32_768}
        | {"max_window_layers": 28},
        known=("use_sliding_window", "sliding_window", "max_window_layers", "layer_types"),
        read=_read,
        write=_write,
    ),
    gguf=Gguf("qwen2", HALVES, _biased),
)
