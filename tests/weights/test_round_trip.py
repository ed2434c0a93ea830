"""Hugging Face to ours and back: not one bit is lost, whatever the type, the shards or the mesh."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors import safe_open

from llama_jax.errors import FormatError, UserError
from llama_jax.layers.rope import Llama3Rope
from llama_jax.weights.huggingface_write import write_huggingface
from llama_jax.weights.opened import load_params, open_checkpoint
from tests.weights.small import BFLOAT16, save, weights

SCALING = {"rope_type": "llama3", "factor": 32.0, "low_freq_factor": 1.0}
SCALING |= {"high_freq_factor": 4.0, "original_max_position_embeddings": 64}


def stored(folder):
    """The tensors of a folder, by the safetensors library, and the file of each."""
    found = {}
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, framework="np") as file:
            assert file.metadata() == {"format": "pt"}
            found |= {name: (file.get_tensor(name), path.name) for name in file.keys()}
    return found


def equal(a, b):
    return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()


@pytest.mark.parametrize("dtype", ["float32", BFLOAT16, "float16"], ids=str)
@pytest.mark.parametrize("shards", [1, 3])
@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
def test_tensors_come_back_bit_by_bit(tmp_path, dtype, shards, tied):
    wanted = weights(0, dtype, tie_word_embeddings=tied)
    save(tmp_path / "theirs", wanted, shards, tie_word_embeddings=tied)
    opened = open_checkpoint(tmp_path / "theirs")
    params = load_params(opened, dtype=dtype)
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {np.dtype(dtype)}
    most = 5 * 10**9 if shards == 1 else 4000
    write_huggingface(tmp_path / "ours", opened.model, params, dtype=dtype, shard_bytes=most)
    found = stored(tmp_path / "ours")
    assert found.keys() == wanted.keys()
    assert all(equal(found[name][0], wanted[name]) for name in wanted)
    assert open_checkpoint(tmp_path / "ours").model == opened.model


def test_files_are_as_large_as_asked_and_the_index_names_them(tmp_path):
    opened = open_checkpoint(save(tmp_path / "theirs", weights()))
    write_huggingface(tmp_path / "ours", opened.model, load_params(opened), shard_bytes=4000)
    index = json.loads((tmp_path / "ours/model.safetensors.index.json").read_text())
    found = stored(tmp_path / "ours")
    assert index["weight_map"] == {name: file for name, (_, file) in found.items()}
    assert index["metadata"]["total_size"] == sum(array.nbytes for array, _ in found.values())
    files = sorted(set(index["weight_map"].values()))
    assert files[0] == f"model-00001-of-{len(files):05}.safetensors" and len(files) > 3
    sizes = {f: sum(a.nbytes for a, file in found.values() if file == f) for f in files}
    assert max(sizes.values()) <= 4000


def test_a_mesh_changes_no_bit(tmp_path, mesh):
    opened = open_checkpoint(save(tmp_path, weights(0, BFLOAT16)))
    alone = load_params(opened)
    split = load_params(opened, mesh(4, fsdp=2, tensor=2))
    assert jax.tree.all(
        jax.tree.map(lambda a, b: equal(np.asarray(a), np.asarray(b)), alone, split)
    )
    q = split["decoder"]["stack"]["layers"]["block_0"]["attn"]["q"]["w"]
    assert q.shape == (2, 16, 4, 4) and q.addressable_shards[0].data.shape == (2, 8, 2, 4)


def test_layers_of_their_own_are_read_and_written_alike(tmp_path):
    import dataclasses

    wanted = weights()
    opened = open_checkpoint(save(tmp_path / "theirs", wanted))
    stack = dataclasses.replace(opened.model.stack, scan=False)
    model = dataclasses.replace(opened.model, stack=stack)
    opened = dataclasses.replace(opened, model=model)
    params = load_params(opened)
    assert set(params["decoder"]["stack"]) == {"layer_0", "layer_1"}
    write_huggingface(tmp_path / "ours", opened.model, params)
    assert all(equal(a, wanted[name]) for name, (a, _) in stored(tmp_path / "ours").items())


def test_the_config_says_all_that_the_model_is(tmp_path):
    fields = {"rope_theta": 5e5, "rope_scaling": SCALING, "head_dim": 8, "rms_norm_eps": 1e-6}
    opened = open_checkpoint(save(tmp_path / "theirs", weights(0, **fields), **fields))
    assert opened.model.stack.pattern[0].attention.rope == Llama3Rope(5e5, factor=32.0, original=64)
    ids = {"bos_token_id": 1, "eos_token_id": [2, 3]}
    write_huggingface(
        tmp_path / "ours", opened.model, load_params(opened), {"a.json": b"{}"}, ids=ids
    )
    config = json.loads((tmp_path / "ours/config.json").read_text())
    assert config["rope_scaling"] == SCALING and config["eos_token_id"] == [2, 3]
    assert open_checkpoint(tmp_path / "ours").model == opened.model
    generation = json.loads((tmp_path / "ours/generation_config.json").read_text())
    assert generation["bos_token_id"] == 1 and (tmp_path / "ours/a.json").read_bytes() == b"{}"


def test_what_the_format_cannot_say_is_refused_by_name(tmp_path):
    from llama_jax.config import edit

    opened = open_checkpoint(save(tmp_path / "theirs", weights()))
    params = load_params(opened)
    for path, value, said in [
        ("stack.pattern.0.attention.scale", 0.5, "attention.scale is 0.5"),
        ("stack.pattern.0.attention.bias", True, "attention.bias is True"),
        ("stack.pattern.0.ffn.activation", "relu", "ffn.activation is 'relu'"),
        ("stack.pattern.0.norm.eps", 1e-3, "norm.eps is 0.001"),
        ("context", None, "has no context"),
    ]:
        with pytest.raises(UserError, match=said):
            write_huggingface(tmp_path / "ours", edit(opened.model, path, value), params)
        assert not (tmp_path / "ours").exists()
    dropped = edit(opened.model, "stack.pattern.0.dropout", 0.5)
    write_huggingface(tmp_path / "ours", dropped, params)


def test_a_folder_is_never_overwritten_and_never_half_there(tmp_path):
    opened = open_checkpoint(save(tmp_path / "theirs", weights()))
    params = load_params(opened)
    with pytest.raises(UserError, match="is not empty"):
        write_huggingface(tmp_path / "theirs", opened.model, params)
    params["decoder"]["norm"]["scale"] = jnp.full(16, 1e6)
    with pytest.raises(FormatError, match="'model.norm.weight' .* float16, which ends at 6.55e"):
        write_huggingface(tmp_path / "ours", opened.model, params, dtype="float16")
    assert [path.name for path in tmp_path.iterdir()] == ["theirs"]
    (tmp_path / "ours").mkdir()
    write_huggingface(tmp_path / "ours", opened.model, params)
    assert (tmp_path / "ours/config.json").exists()
