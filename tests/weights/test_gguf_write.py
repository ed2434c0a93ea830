"""Parameters written as GGUF: the same values come back, and nothing is left of a failure."""

import os
import resource
from dataclasses import replace

import gguf
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gguf import GGMLQuantizationType, quants

from llama_jax.errors import UserError
from llama_jax.families.gguf_names import PAIRS as GGUF
from llama_jax.layers.norm import LayerNorm
from llama_jax.layers.rope import Llama3Rope, Rope
from llama_jax.layers.rope_scaled import DynamicRope, LinearRope, LongRope, YarnRope
from llama_jax.trees import nested
from llama_jax.weights.gguf import open_gguf
from llama_jax.weights.gguf_write import write_gguf
from llama_jax.weights.read import abstract, read
from llama_jax.weights.write import export
from tests.formats.gguf_bytes import VOCAB, tiny_model

LONG = LongRope(1e4, (1,), (1.0, 1.03, 1.1, 2.5), (1.2, 2.0, 7.7, 31.0), 16, 1.19)
MODELS = {
    "llama 2": tiny_model(),
    "llama 3.1": tiny_model(rope=Llama3Rope(5e5)),
    "linear": tiny_model(rope=LinearRope(1e4, factor=4.0)),
    "yarn": tiny_model(rope=YarnRope(1e4, factor=4.0, original=16)),
    "longrope": tiny_model(rope=LONG),
    "tied": tiny_model(rope=Llama3Rope(5e5, factor=32.0), tied=True),
}
TOKENIZER = {
    "tokenizer.ggml.model": "gpt2",
    "tokenizer.ggml.tokens": [*"abcdefghijk", "ß\n"],
    "tokenizer.ggml.token_type": np.array([1] * 11 + [3], np.int32),
    "tokenizer.ggml.scores": np.linspace(-1, 0, VOCAB, dtype=np.float32),
    "tokenizer.ggml.merges": ["a b"],
    "tokenizer.ggml.bos_token_id": np.uint32(10),
    "tokenizer.ggml.add_bos_token": False,
    "tokenizer.chat_template": "",
}


def random_params(model, dtype=jnp.float32):
    dice = np.random.default_rng(0)
    made = {path: dice.normal(size=box.value.shape) for path, box in abstract(model).items()}
    return {"decoder": nested({path: jnp.asarray(value, dtype) for path, value in made.items()})}


def back(path):
    found = open_gguf(path)
    return found, read(found.model, found.source, GGUF, unused=found.unused)


@pytest.mark.parametrize("name", MODELS)
def test_what_is_written_as_float32_comes_back_bit_by_bit(tmp_path, name):
    model = MODELS[name]
    params = random_params(model)
    write_gguf(tmp_path / "x.gguf", model, params)
    found, again = back(tmp_path / "x.gguf")
    [ours], [theirs] = model.stack.pattern, found.model.stack.pattern
    np.testing.assert_array_equal(
        ours.attention.rope.frequencies(8), theirs.attention.rope.frequencies(8)
    )
    assert found.model.tied == model.tied
    assert found.model.context == 64
    jax.tree.map(np.testing.assert_array_equal, again, params)


def test_a_second_file_is_the_first_byte_by_byte(tmp_path):
    model = MODELS["llama 3.1"]
    write_gguf(tmp_path / "a.gguf", model, random_params(model), TOKENIZER)
    found, params = back(tmp_path / "a.gguf")
    write_gguf(tmp_path / "b.gguf", found.model, params, found.fields)
    assert (tmp_path / "a.gguf").read_bytes() == (tmp_path / "b.gguf").read_bytes()


def test_layers_with_arrays_of_their_own_are_written_alike(tmp_path):
    model = MODELS["llama 2"]
    write_gguf(tmp_path / "a.gguf", model, random_params(model))
    stack = replace(model.stack, scan=False)
    apart = replace(model, stack=stack)
    found = open_gguf(tmp_path / "a.gguf")
    params = read(apart, found.source, GGUF, unused=found.unused)
    write_gguf(tmp_path / "b.gguf", apart, params)
    assert (tmp_path / "a.gguf").read_bytes() == (tmp_path / "b.gguf").read_bytes()


def test_half_the_bytes_hold_the_nearest_values(tmp_path):
    model = MODELS["llama 2"]
    params = random_params(model)
    write_gguf(tmp_path / "x.gguf", model, params, kind="F16")
    found, again = back(tmp_path / "x.gguf")
    assert found.source.tensors["blk.0.ffn_up.weight"].dtype == "float16"
    assert found.source.tensors["blk.0.ffn_norm.weight"].dtype == "float32"
    half = params["decoder"]["embed"]["w"].astype(jnp.float16).astype(jnp.float32)
    np.testing.assert_array_equal(again["decoder"]["embed"]["w"], half)
    np.testing.assert_array_equal(
        again["decoder"]["norm"]["scale"], params["decoder"]["norm"]["scale"]
    )


def test_blocks_are_those_of_gguf_s_own_quantisation(tmp_path):
    model = MODELS["llama 2"]
    params = random_params(model)
    write_gguf(tmp_path / "x.gguf", model, params, kind="Q8_0")
    kind = GGMLQuantizationType.Q8_0
    found = open_gguf(tmp_path / "x.gguf")
    for name, tensor in export(model, params, GGUF):
        if tensor.ndim == 2:
            assert found.source.tensors[name.tensor].dtype == "q8_0"
            tensor = quants.dequantize(quants.quantize(tensor, kind), kind)
        np.testing.assert_array_equal(found.source.read(name.tensor), tensor)


def test_rows_of_no_whole_blocks_are_float16(tmp_path):
    model = MODELS["llama 2"]
    model = replace(model, width=40)
    write_gguf(tmp_path / "x.gguf", model, random_params(model), kind="Q8_0")
    tensors = open_gguf(tmp_path / "x.gguf").source.tensors
    assert tensors["blk.0.ffn_up.weight"].dtype == "float16"  # rows of 40
    assert tensors["blk.0.ffn_down.weight"].dtype == "q8_0"  # rows of 64


def test_the_fields_are_of_the_types_that_llama_cpp_asks_for(tmp_path):
    model = MODELS["llama 3.1"]
    general = {"general.name": "Tiny", "general.alignment": 64, "llama.block_count": 7}
    write_gguf(tmp_path / "x.gguf", model, random_params(model), TOKENIZER | general, kind="Q8_0")
    fields = gguf.GGUFReader(tmp_path / "x.gguf").fields
    kinds = {key: [kind.name for kind in field.types] for key, field in fields.items()}
    values = {key: field.contents() for key, field in fields.items()}
    assert values["general.architecture"] == "llama"
    assert values["general.name"] == "Tiny"
    assert values["general.file_type"] == gguf.LlamaFileType.MOSTLY_Q8_0
    assert values["general.alignment"] == 32
    assert values["general.quantization_version"] == gguf.GGML_QUANT_VERSION
    assert values["llama.vocab_size"] == VOCAB
    assert values["llama.block_count"] == 2
    assert values["llama.rope.dimension_count"] == 8
    for key in "context_length embedding_length feed_forward_length attention.head_count".split():
        assert kinds[f"llama.{key}"] == ["UINT32"]
    assert kinds["llama.rope.freq_base"] == ["FLOAT32"]
    assert kinds["tokenizer.ggml.bos_token_id"] == ["UINT32"]
    assert kinds["tokenizer.ggml.add_bos_token"] == ["BOOL"]
    assert kinds["tokenizer.ggml.tokens"] == ["ARRAY", "STRING"]
    assert kinds["tokenizer.ggml.token_type"] == ["ARRAY", "INT32"]
    assert kinds["tokenizer.ggml.scores"] == ["ARRAY", "FLOAT32"]
    assert values["tokenizer.ggml.tokens"] == TOKENIZER["tokenizer.ggml.tokens"]
    assert values["tokenizer.chat_template"] == ""


def test_without_a_tokenizer_the_file_says_so(tmp_path):
    write_gguf(tmp_path / "x.gguf", MODELS["tied"], random_params(MODELS["tied"]))
    assert open_gguf(tmp_path / "x.gguf").fields["tokenizer.ggml.model"] == "no_vocab"


def test_offsets_follow_each_other_as_llama_cpp_demands(tmp_path):
    from llama_jax.formats.gguf import read_header

    path = tmp_path / "x.gguf"
    write_gguf(path, MODELS["llama 3.1"], random_params(MODELS["llama 3.1"]), kind="F16")
    entries = list(read_header(path.read_bytes(), path).tensors.values())
    for entry, following in zip(entries, entries[1:], strict=False):
        assert following.start == -(-(entry.start + entry.size) // 32) * 32


def test_bfloat16_parameters_are_written_as_what_they_are(tmp_path):
    model = MODELS["llama 2"]
    params = random_params(model, jnp.bfloat16)
    write_gguf(tmp_path / "x.gguf", model, params)
    _, again = back(tmp_path / "x.gguf")
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a, b.astype("f4")), again, params)


def test_progress_sees_every_tensor(tmp_path):
    seen = []

    def progress(names):
        for name in names:
            seen.append(name.tensor)
            yield name

    write_gguf(
        tmp_path / "x.gguf", MODELS["tied"], random_params(MODELS["tied"]), progress=progress
    )
    assert seen[0] == "token_embd.weight" and len(seen) == 2 * 9 + 2


def test_a_value_beyond_the_type_is_refused_and_named(tmp_path):
    model = MODELS["llama 2"]
    params = random_params(model)
    for value, kind in ((70_000.0, "F16"), (1e7, "Q8_0"), (np.nan, "F32"), (np.inf, "F32")):
        params["decoder"]["out"]["w"] = params["decoder"]["out"]["w"].at[0, 0].set(value)
        with pytest.raises(UserError, match="'output.weight'"):
            write_gguf(tmp_path / "x.gguf", model, params, kind=kind)
        assert os.listdir(tmp_path) == []


def test_a_failure_leaves_the_file_that_was_there(tmp_path):
    model = MODELS["llama 2"]
    (tmp_path / "x.gguf").write_bytes(b"before")

    def stop(names):
        yield names[0]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_gguf(tmp_path / "x.gguf", model, random_params(model), progress=stop)
    assert os.listdir(tmp_path) == ["x.gguf"]
    assert (tmp_path / "x.gguf").read_bytes() == b"before"


def test_a_disk_that_is_full_is_told_and_left_clean(tmp_path):
    model = MODELS["llama 2"]
    params = random_params(model)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, limits[1]))
    try:
        with pytest.raises(UserError, match="x.gguf cannot be written"):
            write_gguf(tmp_path / "x.gguf", model, params)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert os.listdir(tmp_path) == []


def test_a_folder_that_is_not_there_is_told(tmp_path):
    with pytest.raises(UserError, match="No such file"):
        write_gguf(tmp_path / "no" / "x.gguf", MODELS["tied"], random_params(MODELS["tied"]))


WRONG = {
    "a kind": ({"kind": "Q4"}, "kind 'Q4'"),
    "a vocabulary": ({"fields": {"tokenizer.ggml.tokens": ["a"]}}, "1 tokens, the model 12"),
    "an id": ({"fields": {"tokenizer.ggml.bos_token_id": -1}}, "bos_token_id=-1"),
    "an empty list": ({"fields": {"tokenizer.ggml.merges": []}}, "merges"),
    "a mixed list": ({"fields": {"general.tags": ["a", 1]}}, "general.tags"),
    "nothing": ({"fields": {"general.name": None}}, "general.name"),
    "a large number": ({"fields": {"general.x": [2**40]}}, "general.x"),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_a_file_cannot_hold_is_refused_by_name(tmp_path, case):
    given, words = WRONG[case]
    with pytest.raises(UserError, match=words):
        write_gguf(tmp_path / "x.gguf", MODELS["tied"], random_params(MODELS["tied"]), **given)
    assert os.listdir(tmp_path) == []


OTHER_MODELS = {
    "layer norm": tiny_model(norm=LayerNorm()),
    "post norm": tiny_model(post_norm=True),
    "a base that grows": tiny_model(rope=DynamicRope(factor=2.0, original=64)),
    "yarn of other waves": tiny_model(rope=YarnRope(factor=2.0, fast=16.0)),
    "yarn between whole pairs": tiny_model(rope=YarnRope(factor=2.0, truncate=False)),
    "rope over three axes": tiny_model(rope=Rope(split=(1, 1, 2))),
}


@pytest.mark.parametrize("name", OTHER_MODELS)
def test_a_model_of_no_family_is_refused(tmp_path, name):
    with pytest.raises(UserError, match="which none of GGUF's 'llama', "):
        write_gguf(tmp_path / "x.gguf", OTHER_MODELS[name], {})


def test_a_model_without_a_context_is_told_to_have_one(tmp_path):
    with pytest.raises(UserError, match="has no context, and a GGUF file needs one"):
        write_gguf(tmp_path / "x.gguf", replace(tiny_model(), context=None), {})
