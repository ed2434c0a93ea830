"""Llama 4's language model: transformers' and Meta's logits, past three chunks, in and out."""

import json
import types

import jax
import numpy as np
import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from safetensors.numpy import load_file  # noqa: E402

from llama_jax.verify.checks import verify  # noqa: E402
from llama_jax.weights.convert import convert  # noqa: E402
from llama_jax.weights.opened import load_params, open_checkpoint  # noqa: E402

# float32 logits of order 1 through four layers.
TOLERANCE = 1e-5
CHUNK, FLOOR, LENGTH = 8, 4, 29  # a length beyond three chunks
V, D, HEAD = 61, 32, 8

SCALED = {"rope_type": "llama3", "factor": 16.0, "low_freq_factor": 1.0, "high_freq_factor": 1.0}
SCALED |= {"original_max_position_embeddings": 32, "rope_theta": 100.0}  # so that it matters here
COMMON = {
    "vocab_size": V, "hidden_size": D, "num_hidden_layers": 4, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": HEAD, "intermediate_size": 24,
    "intermediate_size_mlp": 40, "num_local_experts": 3, "floor_scale": FLOOR,
    "max_position_embeddings": 256, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": None,
}  # fmt: skip
# every n-th layer with experts, a norm of q and k, experts a token, chunk, tuned, what else differs
KINDS = {
    "scout": (1, True, 1, CHUNK, True, {"rope_parameters": SCALED}),
    "maverick": (2, False, 1, CHUNK, True, {}),
    "two experts": (1, True, 2, CHUNK, False, {"attention_bias": True}),
    "no chunks": (2, True, 1, None, False, {"tie_word_embeddings": True}),
}


def made(name):
    """Transformers' model of random weights."""
    every, bare, top_k, chunk, tuned, more = KINDS[name]
    config = transformers.Llama4TextConfig(
        **COMMON,
        interleave_moe_layer_step=every,
        use_qk_norm=bare,
        num_experts_per_tok=top_k,
        attention_chunk_size=chunk,
        attn_temperature_tuning=tuned,
        **more,
    )
    config._attn_implementation = "eager"
    torch.manual_seed(0)
    model = transformers.Llama4ForCausalLM(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(0.2 * torch.randn_like(parameter) + (parameter.ndim == 1))
    return model


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """name -> the folder that transformers writes, and its model."""
    kept = {}

    def make(name):
        if name not in kept:
            model, folder = made(name), tmp_path_factory.mktemp("llama4")
            model.save_pretrained(folder)
            kept[name] = folder, model
        return kept[name]

    return make


def ids(rows=2, length=LENGTH):
    return np.random.default_rng(1).integers(0, V, (rows, length)).astype(np.int32)


def ours(folder):
    """Our logits, as a function of ids, and the model."""
    opened = open_checkpoint(folder)
    module, params = opened.model.build(), load_params(opened)

    def logits(x):
        with jax.default_matmul_precision("highest"):
            return np.asarray(module.apply({"params": params}, x))

    return logits, opened.model


@pytest.mark.parametrize("name", KINDS)
def test_logits_are_those_of_transformers_past_three_chunks(folders, name):
    folder, theirs = folders(name)
    logits, model = ours(folder)
    with torch.no_grad():
        expected = theirs(torch.tensor(ids())).logits.numpy()
    np.testing.assert_allclose(logits(ids()), expected, atol=TOLERANCE * np.abs(expected).max())
    assert len(model.stack.pattern) == 4
