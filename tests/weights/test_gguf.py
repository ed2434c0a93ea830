"""GGUF files of tiny models: what they describe, every type of tensor, and what is refused."""

from pathlib import Path

import gguf
import jax
import numpy as np
import pytest
from gguf import GGMLQuantizationType, quants
from gguf import GGUFValueType as Type

from llama_jax.errors import FormatError
from llama_jax.families import gguf_llama3
from llama_jax.families.gguf_names import PAIRS as GGUF
from llama_jax.formats.gguf_file import open_file
from llama_jax.layers.rope import Llama3Rope, Rope
from llama_jax.layers.rope_scaled import LinearRope, YarnRope, yarn_gain
from llama_jax.weights.gguf import open_gguf
from llama_jax.weights.read import read
from tests.formats.gguf_bytes import (
    VOCAB,
    File,
    keyed,
    listed,
    string,
    tiny_file,
    tiny_model,
    tiny_tensors,
    told,
)


def opened(tmp_path, file: File):
    path = tmp_path / "tiny.gguf"
    path.write_bytes(file.bytes())
    return open_gguf(path)


def refused(tmp_path, file: File, *words: str) -> None:
    with pytest.raises(FormatError) as error:
        found = opened(tmp_path, file)
        read(found.model, found.source, GGUF, unused=found.unused)
    said = str(error.value)
    assert len(said.splitlines()) == 1 and all(word in said for word in words), said


def test_the_model_is_what_the_fields_say(tmp_path):
    found = opened(tmp_path, tiny_file())
    assert found.model == tiny_model()
    assert found.fields["llama.context_length"] == 64
    assert found.place == tmp_path / "tiny.gguf"


def test_values_that_are_not_there_have_llama_cpp_s_defaults(tmp_path):
    file = tiny_file(llama__rope__freq_base=None)
    assert opened(tmp_path, file).model == tiny_model(rope=Rope(10_000.0))


def test_without_an_output_tensor_the_head_is_tied(tmp_path):
    found = opened(tmp_path, tiny_file(tiny_tensors(tied=True)))
    assert found.model == tiny_model(tied=True)


def test_a_head_that_repeats_the_embedding_is_not_tied(tmp_path):
    values = tiny_tensors()
    values["output.weight"] = values["token_embd.weight"]
    assert not opened(tmp_path, tiny_file(values)).model.tied


def test_every_weight_is_read_and_turned(tmp_path):
    values = tiny_tensors()
    found = opened(tmp_path, tiny_file(values))
    params = read(found.model, found.source, GGUF, unused=found.unused)["decoder"]
    block = params["stack"]["layers"]["block_0"]
    np.testing.assert_array_equal(params["embed"]["w"], values["token_embd.weight"])
    np.testing.assert_array_equal(params["out"]["w"], values["output.weight"].T)
    for layer in range(2):
        down = values[f"blk.{layer}.ffn_down.weight"]
        np.testing.assert_array_equal(block["ffn"]["down"]["w"][layer], down.T)
        # Two rows of one rotary pair lie side by side in the file and half a head apart here.
        q = values[f"blk.{layer}.attn_q.weight"].reshape(4, 4, 2, 32)
        ours = np.asarray(block["attn"]["q"]["w"][layer])
        np.testing.assert_array_equal(ours[:, :, :4], q[:, :, 0].transpose(2, 0, 1))
        np.testing.assert_array_equal(ours[:, :, 4:], q[:, :, 1].transpose(2, 0, 1))
    assert len(jax.tree.leaves(params)) == 12


def can(kind: GGMLQuantizationType) -> bool:
    try:
        quants.dequantize(np.zeros((1, gguf.GGML_QUANT_SIZES[kind][1]), np.uint8), kind)
    except NotImplementedError:
        return False
    return True


READABLE = [kind for kind in gguf.GGML_QUANT_SIZES if can(kind)]
NAMES = {kind: kind.name for kind in gguf.GGML_QUANT_SIZES}


def with_tensor(kind: GGMLQuantizationType, rows: np.ndarray, shape: tuple[int, int]) -> File:
    """A tiny file whose output layer, as large as it must be, is of another type."""
    values = tiny_tensors()
    del values["output.weight"]
    file = tiny_file(values)
    file.tensors.append(told("output.weight", shape, kind, len(file.data)))
    file.data += rows.tobytes()
    return file


def test_a_tensor_of_several_chunks_has_the_values_that_gguf_gives_it():
    from llama_jax.formats.gguf import Entry
    from llama_jax.formats.gguf_file import CHUNK, _array

    kind = GGMLQuantizationType.Q4_1
    values = np.random.default_rng(0).normal(size=(7, CHUNK // 2 + 32)).astype(np.float32)
    stored = quants.quantize(values, kind)
    ours = _array(stored.tobytes(), Entry(values.shape, kind, 0, stored.nbytes))
    np.testing.assert_array_equal(ours, quants.dequantize(stored, kind))


SMAPS = Path("/proc/self/smaps")


def resident(path: Path) -> int:
    """Bytes of a mapped file that are in memory."""
    lines = iter(SMAPS.read_text().splitlines())
    next(line for line in lines if line.endswith(str(path)))
    return 1024 * int(next(line for line in lines if line.startswith("Rss:")).split()[1])


@pytest.mark.skipif(not SMAPS.exists(), reason="Linux tells it")
def test_of_an_open_file_only_the_tensor_that_was_read_last_is_in_memory(tmp_path):
    path, values = tmp_path / "three.gguf", np.ones((3, 1024, 2048), np.float32)
    size, kind = values[0].nbytes, GGMLQuantizationType.F32
    names = [told(name, (1024, 2048), kind, i * size) for i, name in enumerate("abc")]
    path.write_bytes(File(tensors=names, data=values.tobytes()).bytes())
    source = open_file(path)[1]
    read_first = source.read("a")
    for name in "abc":
        assert source.read(name).sum() == values[0].sum()
        # The system reads whole huge pages, one at either end.
        assert size <= resident(path) <= size + 2 * 2**21
    assert read_first.sum() == values[0].sum()  # found in the file again


def test_parts_of_a_mesh_hold_parts_of_the_weights(tmp_path, mesh):
    values = tiny_tensors()
    found = opened(tmp_path, tiny_file(values))
    alone = read(found.model, found.source, GGUF, unused=found.unused)
    over = read(
        found.model, found.source, GGUF, mesh(8, data=2, fsdp=2, tensor=2), unused=found.unused
    )
    jax.tree.map(np.testing.assert_array_equal, over, alone)
    up = over["decoder"]["stack"]["layers"]["block_0"]["ffn"]["up"]["w"]
    assert up.shape == (2, 32, 64) and up.addressable_shards[0].data.shape == (2, 16, 32)


def test_the_types_that_can_be_read_are_all_that_are_in_use():
    expected = "F32 F16 BF16 Q4_0 Q4_1 Q5_0 Q5_1 Q8_0 Q2_K Q3_K Q4_K Q5_K Q6_K IQ4_NL IQ4_XS MXFP4"
    assert set(expected.split()) <= {kind.name for kind in READABLE}


@pytest.mark.parametrize("kind", READABLE, ids=NAMES.get)
def test_a_tensor_of_any_type_has_the_values_that_gguf_gives_it(tmp_path, kind):
    from llama_jax.formats.gguf import read_header
    from llama_jax.formats.gguf_file import _array

    block, size = gguf.GGML_QUANT_SIZES[kind]
    stored = np.random.default_rng(1).integers(0, 256, (3, 2 * size), dtype=np.uint8)
    if kind.name in ("F32", "F16", "BF16"):
        values = np.random.default_rng(1).normal(size=(3, 2)).astype(np.float32)
        stored = quants.quantize(values, kind).view(np.uint8)
    data = File(tensors=[told("t", (3, 2 * block), kind, 0)], data=stored.tobytes()).bytes()
    entry = read_header(data, "x.gguf").tensors["t"]
    ours = _array(data, entry)
    with np.errstate(all="ignore"):
        expected = quants.dequantize(stored, kind)
    assert ours.shape == (3, 2 * block)
    np.testing.assert_array_equal(ours, expected)


UNREADABLE = [kind for kind in gguf.GGML_QUANT_SIZES if kind not in READABLE]


@pytest.mark.parametrize("kind", UNREADABLE, ids=NAMES.get)
def test_a_type_that_gguf_cannot_turn_into_numbers_is_refused_by_name(tmp_path, kind):
    block, size = gguf.GGML_QUANT_SIZES[kind]
    file = with_tensor(kind, np.zeros((VOCAB, size), np.uint8), (VOCAB, block))
    refused(tmp_path, file, "output.weight", kind.name)


def test_a_quantised_file_is_read_into_params(tmp_path):
    kind = GGMLQuantizationType.Q8_0
    values = tiny_tensors()
    rows = quants.quantize(values["output.weight"], kind)
    found = opened(tmp_path, with_tensor(kind, rows, (VOCAB, 32)))
    params = read(found.model, found.source, GGUF, unused=found.unused)
    expected = quants.dequantize(rows, kind).T
    np.testing.assert_array_equal(params["decoder"]["out"]["w"], expected)
    assert found.source.tensors["output.weight"].dtype == "q8_0"


def with_factors(**factors: np.ndarray) -> tuple[File, dict[str, np.ndarray]]:
    """A tiny file with an NVFP4 matrix and, behind its name, these tensors of float32."""
    kind, name = GGMLQuantizationType.NVFP4, "blk.1.ffn_down"
    block, size = gguf.GGML_QUANT_SIZES[kind]
    stored = np.random.default_rng(2).integers(0, 126, (32, size), dtype=np.uint8)
    values = tiny_tensors()
    del values[f"{name}.weight"]
    values |= {f"{name}.{ending}": factor for ending, factor in factors.items()}
    file = tiny_file(values)
    file.tensors.append(told(f"{name}.weight", (32, block), kind, len(file.data)))
    file.data += stored.tobytes()
    values[f"{name}.weight"] = quants.dequantize(stored, kind)
    return file, values


def test_a_factor_beside_a_matrix_is_multiplied_in(tmp_path):
    factor = np.float32([0.37])
    file, values = with_factors(scale=factor, input_scale=np.float32([9.0]))
    found = opened(tmp_path, file)
    params = read(found.model, found.source, GGUF, unused=found.unused)["decoder"]
    down = params["stack"]["layers"]["block_0"]["ffn"]["down"]["w"][1]
    np.testing.assert_array_equal(down, (values["blk.1.ffn_down.weight"] * factor).T)
    assert found.source.tensors["blk.1.ffn_down.weight"].dtype == "nvfp4"


def test_a_factor_that_is_not_one_number_or_has_no_matrix_is_refused(tmp_path):
    file, _ = with_factors(scale=np.float32([1, 2]))
    refused(tmp_path, file, "'blk.1.ffn_down.scale' is float32 of shape [2]; one float32")
    values = tiny_tensors() | {"blk.7.ffn_down.scale": np.float32([2])}
    refused(tmp_path, tiny_file(values), "does not have", "blk.7.ffn_down.scale")


CONFIGS = {
    "another architecture": (
        {"general__architecture": (Type.STRING, "qwen2")},
        ["general.architecture", "qwen2"],
    ),
    "no architecture": ({"general__architecture": None}, ["general.architecture", "None"]),
    "experts": ({"llama__expert_count": (Type.UINT32, 8)}, ["llama.expert_count=8"]),
    "another kind of rope scaling": (
        {"llama__rope__scaling__type": (Type.STRING, "mrope")},
        ["llama.rope.scaling.type='mrope'", "linear, yarn, longrope"],
    ),
    "longrope without its tensors": (
        {"llama__rope__scaling__type": (Type.STRING, "longrope")},
        ["tensors of rope are []", "rope_factors_long.weight"],
    ),
    "a scaling that shrinks": (
        {"llama__rope__scaling__factor": (Type.FLOAT32, 0.5)},
        ["linear rope: factor=0.5; 1 or more"],
    ),
    "a gain without a scaling": (
        {"llama__rope__scaling__attn_factor": (Type.FLOAT32, 1.5)},
        ["llama.rope.scaling.attn_factor=1.5"],
    ),
    "a list where the kind of scaling is": (
        {"llama__rope__scaling__type": (Type.ARRAY, listed(Type.INT32, [4, 2]))},
        ["llama.rope.scaling.type=a list of 2"],
    ),
    "waves that llama.cpp would not read": (
        {"llama__rope__scaling__type": (Type.STRING, "yarn")}
        | {"llama__rope__scaling__yarn_beta_fast": (Type.FLOAT32, 16.0)},
        ["llama.rope.scaling.yarn_beta_fast=16.0; only 32.0 is known"],
    ),
    "a list where the factor is": (
        {"llama__rope__scaling__factor": (Type.ARRAY, listed(Type.INT32, [4, 2]))},
        ["llama.rope.scaling.factor=a list of 2"],
    ),
    "a list where yarn has a number": (
        {"llama__rope__scaling__type": (Type.STRING, "yarn")}
        | {"llama__rope__scaling__yarn_ext_factor": (Type.ARRAY, listed(Type.INT32, [4, 2]))},
        ["llama.rope.scaling.yarn_ext_factor=a list of 2"],
    ),
    "yarn with a logarithm of its own": (
        {"llama__rope__scaling__type": (Type.STRING, "yarn")}
        | {"llama__rope__scaling__yarn_log_multiplier": (Type.FLOAT32, 0.1)},
        ["llama.rope.scaling.yarn_log_multiplier=0.1"],
    ),
    "another scale of the scores": (
        {"llama__attention__scale": (Type.FLOAT32, 0.5)},
        ["llama.attention.scale=0.5"],
    ),
    "a layer too many": (
        {"llama__block_count": (Type.UINT32, 3)},
        ["llama.block_count=3", "blk.2"],
    ),
    "layers beyond count": (
        {"llama__block_count": (Type.UINT32, 2**31 - 1)},
        ["llama.block_count"],
    ),
    "a layer too few": ({"llama__block_count": (Type.UINT32, 1)}, ["blk.1"]),
    "no layers": ({"llama__block_count": (Type.UINT32, 0)}, ["llama.block_count=0"]),
    "a size that is text": (
        {"llama__embedding_length": (Type.STRING, "32")},
        ["llama.embedding_length='32'"],
    ),
    "a size that is a boolean": (
        {"llama__block_count": (Type.BOOL, 1)},
        ["llama.block_count=True"],
    ),
    "heads of each layer": (
        {"llama__attention__head_count": (Type.ARRAY, listed(Type.INT32, [4, 2]))},
        ["llama.attention.head_count=a list of 2"],
    ),
    "no context length": ({"llama__context_length": None}, ["llama.context_length=None"]),
    "no feed-forward length": ({"llama__feed_forward_length": None}, ["feed_forward_length"]),
    "more heads than channels": (
        {"llama__attention__head_count": (Type.UINT32, 64)},
        ["llama.attention.key_length=0"],
    ),
    "heads in no whole groups": (
        {"llama__attention__head_count_kv": (Type.UINT32, 3)},
        ["heads=4", "kv_heads=3"],
    ),
    "a head beyond count": (
        {"llama__attention__key_length": (Type.UINT32, 2**30)},
        [str(2**30)],
    ),
    "an odd head": ({"llama__attention__key_length": (Type.UINT32, 7)}, ["head of 7"]),
    "half of a head rotated": (
        {"llama__rope__dimension_count": (Type.UINT32, 4)},
        ["llama.rope.dimension_count=4", "8"],
    ),
    "values narrower than keys": (
        {"llama__attention__value_length": (Type.UINT32, 4)},
        ["llama.attention.value_length=4"],
    ),
    "no epsilon": (
        {"llama__attention__layer_norm_rms_epsilon": None},
        ["layer_norm_rms_epsilon=None"],
    ),
    "an epsilon that is not finite": (
        {"llama__attention__layer_norm_rms_epsilon": (Type.FLOAT32, float("nan"))},
        ["layer_norm_rms_epsilon=nan"],
    ),
    "an epsilon that vanishes": (
        {"llama__attention__layer_norm_rms_epsilon": (Type.FLOAT64, 1e-60)},
        ["layer_norm_rms_epsilon=1e-60"],
    ),
    "an endless wavelength": (
        {"llama__rope__freq_base": (Type.FLOAT32, float("inf"))},
        ["llama.rope.freq_base=inf"],
    ),
    "another width": ({"llama__embedding_length": (Type.UINT32, 48)}, ["token_embd.weight", "48"]),
    "tokens of another vocabulary": (
        {"tokenizer__ggml__tokens": (Type.ARRAY, listed(Type.STRING, ["a"] * 13))},
        ["tokenizer.ggml.tokens", "13", "12"],
    ),
    "another vocabulary": ({"llama__vocab_size": (Type.UINT32, 13)}, ["llama.vocab_size", "12"]),
    "one part of several": ({"split__count": (Type.UINT16, 3)}, ["3 parts", "merge"]),
}  # fmt: skip


@pytest.mark.parametrize("case", CONFIGS)
def test_a_config_that_is_not_understood_is_refused_by_name(tmp_path, case):
    changed, words = CONFIGS[case]
    refused(tmp_path, tiny_file(**changed), *words)


NEUTRAL = {
    "no experts": {"llama__expert_count": (Type.UINT32, 0)},
    "scaling by none": {
        "llama__rope__scaling__type": (Type.STRING, "none"),
        "llama__rope__scaling__factor": (Type.FLOAT32, 4.0),
    },
    "scaling by one": {"llama__rope__scaling__factor": (Type.FLOAT32, 1.0)},
    "the head's width": {
        "llama__attention__key_length": (Type.UINT32, 8),
        "llama__rope__dimension_count": (Type.UINT32, 8),
    },
    "parts that were joined": {"split__count": (Type.UINT16, 0)},
}


@pytest.mark.parametrize("case", NEUTRAL)
def test_a_config_that_changes_nothing_is_accepted(tmp_path, case):
    assert opened(tmp_path, tiny_file(**NEUTRAL[case])).model == tiny_model()


def test_a_name_of_a_layer_beyond_count_makes_no_layers(tmp_path):
    values = tiny_tensors() | {f"blk.{2**31 - 2}.attn_norm.weight": np.ones(32, np.float32)}
    file = tiny_file(values, llama__block_count=(Type.UINT32, 2**31 - 1))
    refused(tmp_path, file, "llama.block_count", "22 tensors")


def test_heads_may_be_wider_than_their_share(tmp_path):
    values = tiny_tensors()
    for layer in range(2):
        values[f"blk.{layer}.attn_q.weight"] = np.ones((64, 32), np.float32)
        values[f"blk.{layer}.attn_output.weight"] = np.ones((32, 64), np.float32)
        for name in ("attn_k", "attn_v"):
            values[f"blk.{layer}.{name}.weight"] = np.ones((32, 32), np.float32)
    file = tiny_file(values, llama__attention__key_length=(Type.UINT32, 16))
    file.fields.append(keyed("llama.attention.value_length", Type.UINT32, 16))
    [block] = opened(tmp_path, file).model.stack.pattern
    assert block.attention.head_dim == 16


def test_a_tensor_that_is_missing_is_named(tmp_path):
    for name in ("blk.1.ffn_up.weight", "output_norm.weight", "token_embd.weight"):
        values = tiny_tensors()
        del values[name]
        refused(tmp_path, tiny_file(values), name, "missing")


def test_a_tensor_too_many_is_named(tmp_path):
    values = tiny_tensors() | {"blk.0.attn_q.bias": np.zeros(32, np.float32)}
    refused(tmp_path, tiny_file(values), "blk.0.attn_q.bias")


def test_a_tensor_of_another_shape_is_named(tmp_path):
    values = tiny_tensors()
    values["blk.0.ffn_up.weight"] = values["blk.0.ffn_up.weight"].T
    refused(tmp_path, tiny_file(values), "blk.0.ffn_up.weight", "[32, 64]", "[64, 32]")


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_value_that_is_not_finite_is_refused_when_it_is_read(tmp_path, value):
    values = tiny_tensors()
    values["blk.1.ffn_norm.weight"][3] = value
    refused(tmp_path, tiny_file(values), "blk.1.ffn_norm.weight", "not finite")


def test_what_is_no_file_is_refused(tmp_path):
    for path in (tmp_path, tmp_path / "nothing.gguf"):
        with pytest.raises(FormatError, match="no file"):
            open_gguf(path)
    (tmp_path / "empty.gguf").touch()
    with pytest.raises(FormatError, match="empty"):
        open_gguf(tmp_path / "empty.gguf")


SCALED = {
    "Llama 3.1": Llama3Rope(5e5),
    "Llama 3.2": Llama3Rope(5e5, factor=32.0),
    "Llama 4 Scout's": Llama3Rope(5e5, factor=16.0, high=1.0),
    "another context": Llama3Rope(1e6, factor=4.0, original=32_768),
    "an odd factor": Llama3Rope(5e5, factor=7.3),
}


@pytest.mark.parametrize("name", SCALED)
@pytest.mark.parametrize("head_dim", [64, 128])
def test_a_scaling_of_rope_is_recovered_from_its_divisors(name, head_dim):
    rope = SCALED[name]
    found = gguf_llama3.rope(rope.theta, head_dim, gguf_llama3.divisors(rope, head_dim), "x.gguf")
    if name == "an odd factor":
        assert found.factor == pytest.approx(7.3, rel=1e-6) and found.original == 8192
    else:
        assert found == rope


def test_a_scaling_whose_parameters_a_small_head_hides_has_the_same_frequencies():
    for head_dim in (4, 8, 16):
        for rope in SCALED.values():
            found = gguf_llama3.rope(
                rope.theta, head_dim, gguf_llama3.divisors(rope, head_dim), "x"
            )
            # 1e-6: a factor of 7.3 comes back as float32.
            np.testing.assert_allclose(
                found.frequencies(head_dim), rope.frequencies(head_dim), rtol=1e-6
            )


def test_divisors_are_one_factor_and_a_mixture_between():
    """Four pairs of a head of 8 with theta = 10^8: wavelengths 2 pi 1, 10^2, 10^4, 10^6."""
    rope = Llama3Rope(1e8, factor=8.0, low=1.0, high=4.0, original=100_000)
    share = (100_000 / (2 * np.pi * 1e4) - 1) / 3
    expected = [1, 1, 1 / ((1 - share) / 8 + share), 8]
    np.testing.assert_allclose(gguf_llama3.divisors(rope, 8), expected, rtol=1e-6)


def test_a_file_with_scaled_rope_gives_the_scaling(tmp_path):
    rope = Llama3Rope(1e4, factor=8.0)
    values = tiny_tensors() | {"rope_freqs.weight": gguf_llama3.divisors(rope, 8)}
    found = opened(tmp_path, tiny_file(values))
    assert found.model == tiny_model(rope=rope)
    assert "rope_freqs.weight" in found.unused
    read(found.model, found.source, GGUF, unused=found.unused)


STRETCHED = {
    "a factor without its type": ({"factor": 4.0}, LinearRope(1e4, factor=4.0)),
    "linear": ({"type": "linear", "factor": 4.0}, LinearRope(1e4, factor=4.0)),
    "none": ({"type": "none", "factor": 4.0}, Rope(1e4)),
    "yarn": ({"type": "yarn", "factor": 4.0}, YarnRope(1e4, factor=4.0, original=64)),
    "yarn with all fields": (
        {"type": "yarn", "factor": 4.0, "original_context_length": 16, "yarn_beta_fast": 32.0}
        | {"yarn_beta_slow": 1.0, "attn_factor": 0.5},
        YarnRope(1e4, factor=4.0, original=16, attention=0.5 * yarn_gain(4.0)),
    ),
}


@pytest.mark.parametrize("name", STRETCHED)
def test_fields_of_a_scaling_are_read_as_llama_cpp_reads_them(tmp_path, name):
    told, rope = STRETCHED[name]
    kinds = {str: Type.STRING, int: Type.UINT32, float: Type.FLOAT32}
    file = tiny_file()
    for key, value in told.items():
        file.fields.append(keyed(f"llama.rope.scaling.{key}", kinds[type(value)], value))
    assert opened(tmp_path, file).model == tiny_model(rope=rope)


def test_a_scaling_beside_divisors_is_refused(tmp_path):
    values = tiny_tensors() | {"rope_freqs.weight": np.ones(4, np.float32)}
    file = tiny_file(values, llama__rope__scaling__factor=(Type.FLOAT32, 4.0))
    refused(tmp_path, file, "tensors of rope are ['rope_freqs.weight']", "'linear'")


def test_divisors_of_one_scale_nothing(tmp_path):
    values = tiny_tensors() | {"rope_freqs.weight": np.ones(4, np.float32)}
    assert opened(tmp_path, tiny_file(values)).model == tiny_model()


@pytest.mark.parametrize(
    "divisors",
    [[1, 1, 1, 0.5], [1, 3, 2, 8], [1, 1, np.nan, 8], [1, 1, np.inf, 8], [1, 1, -8, 8], [1, 8]],
    ids=str,
)
def test_divisors_of_another_scaling_are_refused_by_name(tmp_path, divisors):
    values = tiny_tensors() | {"rope_freqs.weight": np.array(divisors, np.float32)}
    refused(tmp_path, tiny_file(values), "rope_freqs.weight")


def test_a_name_from_a_file_stays_on_one_line(tmp_path):
    values = tiny_tensors() | {"a\nb\u2028c": np.zeros(4, np.float32)}
    refused(tmp_path, tiny_file(values), r"a\nb\u2028c")
    file = tiny_file(general__architecture=(Type.STRING, string("x\n" * 200)))
    refused(tmp_path, file, r"x\nx")
