"""Damaged config.json, index.json and params.json: a checked model, or a refusal by type."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest

from llama_jax import families, presets
from llama_jax.families.llama4_params import Llama4Shapes
from llama_jax.families.llama4_params import model as meta_model4
from llama_jax.families.llama_params import Shapes
from llama_jax.families.llama_params import model as meta_model
from llama_jax.families.mllama_meta import _model as seen_model
from llama_jax.families.mllama_parts import grids
from llama_jax.families.names import tensors
from llama_jax.families.sizes import layers, sizes
from llama_jax.formats.source import INDEX, read_json, safetensors
from llama_jax.models.tiled_vision import ByShape
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


def read_llama4_vision(data: bytes, folder: Path) -> None:
    """Llama 4 with eyes, whose parts are of one width."""
    (folder / "config.json").write_bytes(data)
    config = read_json(folder / "config.json")
    model = families.of(config).huggingface.model(config)
    assert model.vision.out == model.language.width and model.picture < model.vocab


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


PARAMS_SEEN = {"dim": 32, "n_layers": 4, "n_heads": 4, "n_kv_heads": 2, "vocab_size": 62}
PARAMS_SEEN |= {"multiple_of": 88, "rope_theta": 5e5, "vision_chunk_size": 28}
PARAMS_SEEN |= {"vision_max_num_chunks": 4, "vision_num_cross_attention_layers": 2}
TOWER = "vision_model.vision_encoder."
SEEN_SHAPES = {
    "text_model.tok_embeddings.weight": (62, 32),
    "text_model.layers.0.feed_forward.w1.weight": (88, 32),
    f"{TOWER}class_embedding": (32,),
    f"{TOWER}positional_embedding": (5, 32),
    f"{TOWER}transformer.resblocks.0.mlp.c_fc.weight": (48, 32),
} | {
    f"{TOWER}{where}.resblocks.{i}.ln_1.weight": (32,)
    for where, layers_of in (("transformer", 32), ("global_transformer", 8))
    for i in range(layers_of)
}


def read_params4(data: bytes, folder: Path) -> None:
    """The language model of Llama 4's params.json."""
    (folder / "params.json").write_bytes(data)
    decoder = meta_model4(read_json(folder / "params.json"), Llama4Shapes(62, 104, 56))
    assert sizes(decoder).letters["V"] == 62 and sizes(decoder).layers == len(layers(decoder))


def read_mllama(data: bytes, folder: Path) -> None:
    """The model of Llama 3.2-Vision's config.json, and the names of its tensors."""
    (folder / "config.json").write_bytes(data)
    config = read_json(folder / "config.json")
    words = families.of(config).huggingface
    model = words.model(config)
    assert model.vocab == model.decoder.vocab + model.extra
    assert model.decoder.stack.layers == config["text_config"]["num_hidden_layers"]
    if model.decoder.stack.layers < 200:  # of more the names alone take minutes
        assert tensors(model, words.table)


def read_params_seen(data: bytes, folder: Path) -> None:
    """The model of Meta's params.json of Llama 3.2-Vision."""
    (folder / "params.json").write_bytes(data)
    model = seen_model(read_json(folder / "params.json"), SEEN_SHAPES, folder / "params.json")
    assert model.decoder.vocab == 62 and model.vision.out == 32


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


def test_damaged_configs_of_llama_4_with_its_eyes_are_refused_by_type():
    model = presets.get("llama4_maverick_vision").model
    words = families.describing(model, "huggingface").huggingface
    check("read_llama4_vision", json.dumps(words.config(model)).encode(), 300)


def test_damaged_params_are_refused_by_type():
    check("read_params", json.dumps(PARAMS).encode(), 500)


def test_damaged_params_of_llama_4_are_refused_by_type():
    check("read_params4", json.dumps(PARAMS4).encode(), 500)


def test_damaged_configs_of_models_that_see_are_refused_by_type():
    model = presets.get("llama3_2_11b_vision").model
    vision = dataclasses.replace(model.vision, tables=ByShape(grids(4)))
    words = families.every()[families.NAMES.index("mllama")].huggingface
    config = words.config(dataclasses.replace(model, vision=vision))
    check("read_mllama", json.dumps(config).encode(), 1000)


def test_damaged_params_of_models_that_see_are_refused_by_type():
    check("read_params_seen", json.dumps(PARAMS_SEEN).encode(), 500)


def test_damaged_indices_are_refused_by_type(tmp_path):
    check("read_index", (save(tmp_path, weights(), 2) / INDEX).read_bytes(), 500)
