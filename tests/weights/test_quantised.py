"""Quantised folders through the doors that plain ones go through: opened, loaded, converted."""

import json

import jax
import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from llama_jax.errors import FormatError
from llama_jax.formats.source import safetensors
from llama_jax.verify.declared import said
from llama_jax.verify.facts import facts
from llama_jax.weights.convert import convert
from llama_jax.weights.opened import load_params, open_checkpoint
from tests.weights.small import save, weights

FLOAT8 = np.dtype(ml_dtypes.float8_e4m3fn)


def quantised(folder, **fields):
    """A folder of Meta's kind, a weight of each layer in 8 bits; the numbers that it holds."""
    found, stored = weights(**fields), {}
    for name, array in found.items():
        if not name.endswith("_proj.weight"):
            stored[name] = array
            continue
        scale = abs(array).max(1, keepdims=True) / 448
        packed = (array / scale).astype(FLOAT8)
        stored |= {name: packed, f"{name}_scale": scale}
        stored[name.replace("weight", "input_scale")] = np.ones(1, "float32")
        found[name] = packed.astype("float32") * scale
    fields |= {"quantization_config": {"quant_method": "fbgemm_fp8", "activation_scale_ub": 1200.0}}
    return save(folder, stored, **fields), found


def test_a_quantised_folder_is_loaded_as_the_numbers_that_it_holds(tmp_path):
    folder, found = quantised(tmp_path / "packed")
    packed, plain = open_checkpoint(folder), open_checkpoint(save(tmp_path / "plain", found))
    assert packed.model == plain.model and packed.unused == ()
    jax.tree.map(np.testing.assert_array_equal, load_params(packed), load_params(plain))


@pytest.mark.parametrize("to", ["huggingface", "gguf", "orbax"])
def test_what_is_converted_is_plain(tmp_path, to):
    folder, found = quantised(tmp_path / "packed")
    lines = []
    convert(folder, tmp_path / "out", to, say=lines.append)
    assert any("is quantised: its values are kept, as plain numbers" in line for line in lines)
    again = load_params(open_checkpoint(tmp_path / "out"))
    wanted = load_params(open_checkpoint(save(tmp_path / "plain", found)))
    jax.tree.map(np.testing.assert_array_equal, again, wanted)
    if to == "huggingface":
        written = load_file(tmp_path / "out" / "model.safetensors")
        assert written.keys() == found.keys()
        assert "quantization_config" not in json.loads((tmp_path / "out/config.json").read_text())


def test_verify_says_in_what_a_folder_is_packed(tmp_path):
    opened = open_checkpoint(quantised(tmp_path / "packed")[0])
    told = facts(opened, opened.model, said(opened))
    [line] = [line for line in told.lines if line.name == "types of the tensors"]
    assert line.text == "14 of scaled_float8, 7 of float32"


def test_packed_weights_without_a_word_in_the_config_are_refused(tmp_path):
    folder, _ = quantised(tmp_path / "packed")
    config = json.loads((folder / "config.json").read_text())
    del config["quantization_config"]
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(FormatError, match="is of type float8_e4m3fn; F64, F32, F16, BF16 were"):
        load_params(open_checkpoint(folder))


def test_a_scale_that_is_no_number_is_refused_with_the_weight_s_name(tmp_path):
    folder, _ = quantised(tmp_path / "packed")
    file = folder / "model.safetensors"
    name = "model.layers.1.mlp.up_proj.weight"
    data = bytearray(file.read_bytes())
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    begin = 8 + int.from_bytes(data[:8], "little") + header[f"{name}_scale"]["data_offsets"][0]
    data[begin : begin + 4] = np.float32(np.nan).tobytes()
    file.write_bytes(data)
    with pytest.raises(FormatError, match=f"tensor '{name}' holds values that are not finite"):
        load_params(open_checkpoint(folder))


def test_biases_of_zeros_that_a_model_has_no_room_for_are_read_past(tmp_path):
    folder, found = quantised(tmp_path / "packed")
    file, bias = folder / "model.safetensors", "model.layers.0.mlp.down_proj.bias"

    def with_bias(name, value):
        stored = {name: safetensors(file).read(name) for name in safetensors(file).tensors}
        save_file(stored | {name: np.full(16, value, "float16")}, file, {"format": "pt"})

    with_bias(bias, 0)
    assert open_checkpoint(folder).unused == (bias,)
    wanted = load_params(open_checkpoint(save(tmp_path / "plain", found)))
    jax.tree.map(np.testing.assert_array_equal, load_params(open_checkpoint(folder)), wanted)
    with_bias(bias, 0.5)
    with pytest.raises(FormatError, match=f"does not have, e.g. '{bias}'"):
        load_params(open_checkpoint(folder))
