"""Tiny checkpoints in the formats of others, written without the code under test."""

import json

import ml_dtypes
import numpy as np
from safetensors.numpy import save_file

from llama_jax.families.huggingface_names import NAMES as HUGGING_FACE
from llama_jax.families.llama import FAMILY
from llama_jax.families.names import tensors

CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "vocab_size": 40,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "hidden_act": "silu",
    "max_position_embeddings": 128,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "tie_word_embeddings": False,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
BFLOAT16 = np.dtype(ml_dtypes.bfloat16)


def weights(seed: int = 0, dtype="float32", **fields) -> dict[str, np.ndarray]:
    """Random tensors by Hugging Face's names."""
    rng = np.random.default_rng(seed)
    names = tensors(FAMILY.huggingface.model(CONFIG | fields), HUGGING_FACE)
    return {name.tensor: (0.3 * rng.normal(size=name.shape)).astype(dtype) for name in names}


def save(folder, found: dict[str, np.ndarray], shards: int = 1, **fields):
    """A Hugging Face folder."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(CONFIG | fields))
    if shards == 1:
        save_file(found, folder / "model.safetensors", {"format": "pt"})
        return folder
    placed = {}
    for i in range(shards):
        mine = list(found)[i::shards]
        name = f"model-{i + 1:05}-of-{shards:05}.safetensors"
        save_file({key: found[key] for key in mine}, folder / name, {"format": "pt"})
        placed |= dict.fromkeys(mine, name)
    index = {"metadata": {"total_size": 0}, "weight_map": placed}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return folder
