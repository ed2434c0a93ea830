"""Tiny models of every generation, written by transformers and read by us: the same logits.

Positions past 8,192 are included where rope is scaled.
"""

import json

import jax.numpy as jnp
import numpy as np
import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from llama_jax.weights import huggingface  # noqa: E402
from llama_jax.weights.names import HUGGING_FACE  # noqa: E402
from llama_jax.weights.read import read  # noqa: E402
from llama_jax.weights.source import safetensors  # noqa: E402

# float32 logits of order 1 through two layers.
TOLERANCE = 1e-5
SCALED = {"low_freq_factor": 1.0, "high_freq_factor": 4.0}
SCALED |= {"rope_type": "llama3", "original_max_position_embeddings": 8192}

GENERATIONS = {
    "llama1": {"rms_norm_eps": 1e-6},
    "llama2": {},
    "llama2_70b": {"num_key_value_heads": 2},
    "code_llama": {"rope_theta": 1e6, "num_key_value_heads": 2},
    "llama3": {"rope_theta": 5e5, "num_key_value_heads": 2},
    "llama3_1": {"rope_theta": 5e5, "num_key_value_heads": 2, "scaling": {"factor": 8.0}},
    "llama3_2": {
        "rope_theta": 5e5,
        "num_key_value_heads": 2,
        "scaling": {"factor": 32.0},
        "tie_word_embeddings": True,
        "head_dim": 32,
    },
}


def tiny(folder, scaling=None, **fields):
    """A random model in a folder; the weights are large enough for every part to matter."""
    fields = {"rms_norm_eps": 1e-5, "num_key_value_heads": 4, "rope_theta": 1e4} | fields
    theta = fields.pop("rope_theta")
    rope = {"rope_theta": theta, "rope_type": "default"} | (SCALED | scaling if scaling else {})
    config = transformers.LlamaConfig(
        vocab_size=61, hidden_size=64, intermediate_size=96, num_hidden_layers=2,
        num_attention_heads=4, max_position_embeddings=131_072, rope_parameters=rope,
        attn_implementation="eager", **fields,
    )  # fmt: skip
    torch.manual_seed(0)
    theirs = transformers.LlamaForCausalLM(config).eval()
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    theirs.save_pretrained(folder)
    return theirs


@pytest.mark.parametrize("name", GENERATIONS)
def test_the_logits_of_a_generation_are_transformers(tmp_path, name):
    theirs = tiny(tmp_path, **GENERATIONS[name])
    ours = huggingface.model(json.loads((tmp_path / "config.json").read_text()))
    params = read(ours, safetensors(tmp_path / "model.safetensors"), HUGGING_FACE)
    ids = np.random.default_rng(1).integers(0, 61, (2, 12))
    for start in (0, 9_000, 131_000) if "scaling" in GENERATIONS[name] else (0, 1000):
        positions = np.broadcast_to(np.arange(start, start + 12), (2, 12))
        with torch.no_grad():
            expected = theirs(torch.tensor(ids), position_ids=torch.tensor(positions)).logits
        found, _ = ours.build().apply(
            {"params": params},
            jnp.asarray(ids),
            positions_BT=jnp.asarray(positions),
            method="decode",
        )
        np.testing.assert_allclose(found, expected.numpy(), atol=TOLERANCE, rtol=TOLERANCE)
