"""Damaged config.json, index.json and params.json: a checked model, or a refusal by type."""

import json
from pathlib import Path

import numpy as np
import pytest

from llama_jax import families, presets
from llama_jax.families.llama4_params import Shapes as Shapes4
from llama_jax.families.llama4_params import model as meta_model4
from llama_jax.families.llama_params import Shapes
from llama_jax.families.llama_params import model as meta_model
from llama_jax.families.sizes import layers, sizes
from llama_jax.formats.source import INDEX, read_json, safetensors
from llama_jax.weights.opened import load_params, open_checkpoint
from tests.fuzz.mutate import damaged, damaged_json, run
from tests.weights.small import CONFIG, save, weights

pytestmark = pytest.mark.fuzz

FIELDS = {"rope_scaling": {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0}}
FIELDS["rope_scaling"] |= {"high_freq_factor": 4.0, "original_max_position_embeddings": 8192}
FIELDS |= {"quantization_config": None, "sliding_window": None, "head_dim": 4}
PARAMS = {"dim": 64, "n_layers": 2, "n_heads": 16, "n_kv_heads": 8, "vocab_size": 40}
PARAMS |= {"multiple_of": 16, "norm_eps": 1e-5, "rope_theta": 5e5, "ffn_dim_multiplier": 1.0}
PARAMS |= {"use_scaled_rope": True, "rope_scaling_factor": 8.0, "moe_args": None}


def read_config(data: bytes, folder: Path) -> None:
    """A checkpoint whose tensors are those of the config before it was damaged."""
    save(folder, weights(**FIELDS))
    (folder / "config.json").write_bytes(data)
    opened = open_checkpoint(folder)
    attention = opened.model.stack.pattern[0].attention
    assert np.isfinite(attention.rope.frequencies(attention.head_dim)).all()
    params = load_params(opened)
    assert opened.model.tied == ("out" not in params["decoder"])


def read_relative(data: bytes, folder: Path) -> None:
    """The model of a config.json of a family that differs from Llama by a switch."""
    (folder / "config.json").write_bytes(data)
    config = read_json(folder / "config.json")
    model = families.of(config).huggingface.model(config)
    assert len(layers(model)) == sizes(model).layers == config.get("num_hidden_layers", 48)


def read_params(data: bytes, folder: Path) -> None:
    """The model of Meta's params.json."""
    (folder / "params.json").write_bytes(data)
    decoder = meta_model(read_json(folder / "params.json"), Shapes(40, 176, True))
    attention = decoder.stack.pattern[0].attention
    assert np.isfinite(attention.rope.frequencies(attention.head_dim)).all()
    assert (decoder.vocab, decoder.stack.pattern[0].ffn.hidden) == (40, 176)


PARAMS4 = {"dim": 32, "n_layers": 4, "n_heads": 4, "n_kv_heads": 2, "vocab_size": 62}
PARAMS4 |= {"multiple_of": 8, "ffn_exp": 4.0, "ffn_dim_multiplier": 1.2, "use_scaled_rope": True}
PARAMS4 |= {"nope_layer_interval": 4, "attention_chunk_size": 8, "use_qk_norm": True}
PARAMS4["moe_args"] = {"num_experts": 3, "top_k": 1, "interleave_moe_layer_step": 2}


def read_params4(data: bytes, folder: Path) -> None:
    """The language model of Llama 4's params.json."""
    (folder / "params.json").write_bytes(data)
    decoder = meta_model4(read_json(folder / "params.json"), Shapes4(62, 104, 56))
    assert sizes(decoder).letters["V"] == 62 and sizes(decoder).layers == len(layers(decoder))


def read_index(data: bytes, folder: Path) -> None:
    """The files that an index names."""
    save(folder, weights(), 2)
    (folder / INDEX).write_bytes(data)
    source = safetensors(folder)
    source.check({name: tensor.shape for name, tensor in weights().items()})


def check(target: str, good: bytes, count: int) -> None:
    files = damaged_json(good, count - count // 4) + damaged(good, count // 4)
    report = run(f"{__name__}:{target}", files)
    print(report)
    assert not report.problems, report
    assert report.loaded and report.refused > count / 4, report


def test_damaged_configs_are_refused_by_type():
    check("read_config", json.dumps(CONFIG | FIELDS).encode(), 1000)


@pytest.mark.parametrize(
    "name", ["mistral_7b", "smollm3_3b", "qwen3_0_6b", "cwm_32b", "llama4_maverick"]
)
def test_damaged_configs_of_relatives_are_refused_by_type(name):
    model = presets.get(name).model
    words = families.describing(model, "huggingface").huggingface
    check("read_relative", json.dumps(words.config(model)).encode(), 300)


def test_damaged_params_are_refused_by_type():
    check("read_params", json.dumps(PARAMS).encode(), 500)


def test_damaged_params_of_llama_4_are_refused_by_type():
    check("read_params4", json.dumps(PARAMS4).encode(), 500)


def test_damaged_indices_are_refused_by_type(tmp_path):
    check("read_index", (save(tmp_path, weights(), 2) / INDEX).read_bytes(), 500)
