"""Quantised matrices: what other programs unpacked, bit for bit; definitions; what is refused."""

import json
import struct
import tracemalloc
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import save_file

from llama_jax.errors import FormatError
from llama_jax.formats.quantised import rows
from llama_jax.formats.quantised.expand import expanded
from llama_jax.formats.quantised.scheme import scheme_of
from llama_jax.formats.source import safetensors

# Packed and unpacked by the packages that define the formats (tests/parity/packed.py writes them).
CASES = sorted((Path(__file__).parent / "packed").glob("*.safetensors"))


def told(file: Path) -> dict:
    """What a case says in its header of quantization_config."""
    data = file.read_bytes()
    [length] = struct.unpack("<Q", data[:8])
    return json.loads(json.loads(data[8 : 8 + length])["__metadata__"]["config"])


def opened(place: Path, config: dict):
    return expanded(safetensors(place), scheme_of({"quantization_config": config}, "config.json"))


def bits(array: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(array).view(np.uint8)


@pytest.mark.parametrize("file", CASES, ids=lambda file: file.stem)
def test_a_matrix_is_what_the_package_unpacks_bit_for_bit(file, monkeypatch):
    monkeypatch.setattr(rows, "AT_A_TIME", 1)  # eight rows at a time
    source = opened(file, told(file))
    found, wanted = source.read("m.weight"), source.read("dense")
    assert sorted(source.tensors) == ["dense", "m.weight"]
    assert source.tensors["m.weight"].shape == found.shape == wanted.shape
    assert found.dtype == wanted.dtype
    np.testing.assert_array_equal(bits(found), bits(wanted))


def packed(folder: Path, tensors: dict[str, np.ndarray], config: dict):
    """A source of one module, "m"."""
    save_file({f"m.{part}": array for part, array in tensors.items()}, folder / "x.safetensors")
    return opened(folder / "x.safetensors", config)


def compressed(format_: str, **weights) -> dict:
    group = {"targets": ["Linear"], "weights": {"num_bits": 4, "type": "int"} | weights}
    return {
        "quant_method": "compressed-tensors",
        "format": format_,
        "config_groups": {"group_0": group},
    }


def words(codes: np.ndarray, width: int) -> np.ndarray:
    """Rows of codes as int32, the lowest bits first."""
    each = 32 // width
    apart = codes.astype(np.uint64).reshape(*codes.shape[:-1], -1, each)
    return (apart << (width * np.arange(each, dtype=np.uint64))).sum(-1).astype("<u4").view("<i4")


def test_columns_in_the_order_of_activations_have_the_scale_of_their_group(tmp_path):
    rng = np.random.default_rng(0)
    codes, scale = rng.integers(0, 16, (8, 16)), rng.normal(size=(8, 2)).astype("float32")
    group = rng.permutation(np.repeat([0, 1], 8)).astype("int32")
    parts = {"weight_packed": words(codes, 4), "weight_scale": scale, "weight_g_idx": group}
    parts["weight_shape"] = np.array([8, 16])
    config = compressed("pack-quantized", group_size=8)
    found = packed(tmp_path, parts, config).read("m.weight")
    np.testing.assert_array_equal(found, (codes - 8).astype("float32") * scale[:, group])
    # What old programs leave there when columns are in order.
    parts["weight_g_idx"] = np.full(16, -1, "int32")
    found = packed(tmp_path, parts, config).read("m.weight")
    np.testing.assert_array_equal(found, (codes - 8).astype("float32") * scale.repeat(8, 1))


@pytest.mark.parametrize("width", [2, 4, 8])
def test_zero_points_of_zero_that_took_from_their_neighbours_are_zero_again(tmp_path, width):
    zeros = np.arange(32).reshape(1, 32) % 2 * (2**width - 1)
    ones = words(np.ones((1, 32)), width)
    # A word less a word, as the program writes version 1.
    stored = (words(zeros, width).view("<u4") - ones.view("<u4")).view("<i4")
    codes = np.random.default_rng(0).integers(0, 2**width, (32, 32))
    parts = {"qweight": words(codes, width).T.copy(), "qzeros": stored}
    parts |= {"scales": np.ones((1, 32), "float16"), "g_idx": np.zeros(32, "int32")}
    config = {"quant_method": "gptq", "bits": width, "group_size": -1, "desc_act": True}
    found = packed(tmp_path, parts, config).read("m.weight")
    np.testing.assert_array_equal(found, codes - zeros.T)


def test_four_bits_may_be_held_as_another_type_and_end_within_a_block(tmp_path):
    codes = np.random.default_rng(0).integers(0, 16, 33 * 3)
    both = np.append(codes, 0).reshape(-1, 2)
    stored = np.append(both[:, 0] << 4 | both[:, 1], [0, 0]).astype(np.uint8)
    state = {"quant_type": "nf4", "blocksize": 64, "dtype": "bfloat16", "shape": [3, 33]}
    values, scales = np.linspace(-1, 1, 16, dtype="float32"), np.float32([2, 0.5])
    parts = {"weight": stored.view("<f4")[:, None], "weight.absmax": scales}
    parts |= {"weight.quant_map": values}
    parts["weight.quant_state.bitsandbytes__nf4"] = np.frombuffer(
        json.dumps(state).encode(), np.uint8
    ).copy()
    found = packed(tmp_path, parts, {"load_in_4bit": True}).read("m.weight")
    wanted = (values[codes] * scales.repeat(64)[:99]).astype(ml_dtypes.bfloat16).reshape(3, 33)
    np.testing.assert_array_equal(bits(found), bits(wanted))


@pytest.mark.parametrize("shape", [(), (1,)])
def test_modelopt_multiplies_by_the_scale_of_a_matrix(tmp_path, shape):
    parts, _ = case("ct_nvfp4")
    whole = np.full(shape, 0.37, "float32")
    given = {"weight": parts["weight_packed"], "weight_scale": parts["weight_scale"]}
    given |= {"weight_scale_2": whole, "input_scale": np.ones((), "float32")}
    source = packed(tmp_path, given, {"quant_method": "modelopt", "quant_algo": "NVFP4"})
    table = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6], "float32")
    stored = given["weight"].astype(int)
    codes = np.stack([stored & 15, stored >> 4], -1).reshape(32, 64)
    values = table[codes % 8] * np.where(codes < 8, 1, -1).astype("float32")
    scales = given["weight_scale"].astype("float32") * np.float32(0.37)
    np.testing.assert_array_equal(source.read("m.weight"), values * scales.repeat(16, 1))
    assert list(source.tensors) == ["m.weight"]


@pytest.mark.parametrize("rows", [1, 32])
def test_modelopt_s_8_bit_floats_have_a_scale_for_a_matrix_or_for_each_row(tmp_path, rows):
    given = {
        "weight": case("fp8")[0]["weight"],
        "weight_scale": np.linspace(1, 2, rows, dtype="f4"),
    }
    found = packed(tmp_path, given, {"quant_method": "modelopt"}).read("m.weight")
    scales = given["weight_scale"][:, None]
    np.testing.assert_array_equal(found, given["weight"].astype("float32") * scales)


def test_a_name_is_a_nearer_target_than_a_pattern_and_a_pattern_than_a_class(tmp_path):
    config = compressed("naive-quantized")
    config["config_groups"] = {
        f"group_{i}": {"targets": [target], "weights": {"num_bits": 8, "strategy": strategy}}
        for i, (target, strategy) in enumerate(
            [("Linear", "tensor"), ("re:m$", "channel"), ("m", "group")]
        )
    }
    config["config_groups"]["group_2"]["weights"]["group_size"] = 2
    parts = {"weight": np.ones((2, 4), "int8"), "weight_scale": np.float32([[1, 2], [3, 4]])}
    found = packed(tmp_path, parts, config).read("m.weight")
    np.testing.assert_array_equal(found, [[1, 1, 2, 2], [3, 3, 4, 4]])
    del config["config_groups"]["group_2"]
    parts["weight_scale"] = np.float32([[5], [6]])
    found = packed(tmp_path, parts, config).read("m.weight")
    np.testing.assert_array_equal(found, [[5] * 4, [6] * 4])


def test_expanding_takes_little_memory_beside_the_matrix(tmp_path):
    out, width = 2048, 2048
    parts = {"qweight": np.zeros((width // 8, out), "int32"), "g_idx": np.zeros(width, "int32")}
    parts |= {"qzeros": np.zeros((1, out // 8), "int32"), "scales": np.ones((1, out), "float16")}
    source = packed(tmp_path, parts, {"quant_method": "gptq", "bits": 4, "group_size": -1})
    tracemalloc.start()
    try:
        source.read("m.weight")
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    held = 2 * out * width + out * width // 2  # float16, and the file's words
    assert peak < held + 4 * 16 * rows.AT_A_TIME  # a few arrays of float32 in each of four threads


FP8 = {"quant_method": "fp8", "weight_block_size": [8, 8]}
GPTQ = {"quant_method": "gptq", "bits": 4, "group_size": 32}


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"quant_method": "aqlm"}, "quantization_config of 'aqlm'; fbgemm_fp8, fp8, compressed"),
        ({"quant_method": ["x"]}, "quantization_config of ['x']"),
        ({"quant_method": "fp9"}, "Did you mean 'fp8'?"),
        (FP8 | {"weight_block_size": [8]}, "weight_block_size=[8]; two sizes such as [128, 128]"),
        (FP8 | {"fmt": "e5m2"}, "fmt='e5m2'; 'e4m3' was expected"),
        (GPTQ | {"bits": 5}, "bits=5; 2 or 3 or 4 or 8 was expected"),
        (GPTQ | {"bits": None}, "bits=None; 2 or 3 or 4 or 8"),
        (GPTQ | {"group_size": 0}, "group_size=0"),
        (GPTQ | {"checkpoint_format": "marlin"}, "checkpoint_format='marlin'; 'gptq' or"),
        (GPTQ | {"dynamic": {"+:x": {"bits": 8}}}, "dynamic="),
        ({"quant_method": "modelopt", "quant_algo": "W4A8_AWQ"}, "quant_algo='W4A8_AWQ'"),
        ({"quant_method": "awq", "version": "gemv"}, "version='gemv'; 'gemm'"),
        ({"quant_method": "awq", "bits": 8}, "bits=8; 4 was expected"),
        (compressed("sparse-24"), "quantization_config.format='sparse-24'"),
        (compressed("float-quantized"), "format='float-quantized'; a packing of int numbers"),
        (compressed("pack-quantized", num_bits=9), "group_0.weights.num_bits=9; 1 or 2"),
        (compressed("float-quantized", type="float"), "num_bits=4; 8 in float-quantized"),
        (compressed("pack-quantized", strategy="block"), "block_structure=None; two sizes"),
        (compressed("pack-quantized", strategy="group"), "group_size=None"),
        (compressed("pack-quantized") | {"config_groups": {}}, "config_groups={}"),
        (compressed("pack-quantized") | {"quantization_status": "frozen"}, "status='frozen'"),
        (
            compressed("pack-quantized") | {"transform_config": {"config_groups": {"r": {}}}},
            "a model that is not rotated while it runs was expected",
        ),
    ],
)
def test_a_scheme_that_is_not_read_is_refused_by_the_setting(config, said):
    with pytest.raises(FormatError) as caught:
        scheme_of({"quantization_config": config}, "x/config.json")
    assert said in str(caught.value) and str(caught.value).startswith("x/config.json: ")


# None of these takes long: others of their shape do.
@pytest.mark.parametrize(
    "pattern", ["(ab)+", "(a|b)*c", "a?b?c?d?e?f?", "a*b*c*d*e*f*", "a|" * 41, "[", "(x){2}"]
)
def test_a_pattern_of_a_shape_that_can_run_for_ever_is_refused(pattern):
    config = compressed("pack-quantized", strategy="channel")
    config["config_groups"]["group_0"]["targets"] = ["re:" + pattern]
    with pytest.raises(FormatError, match="patterns with few repetitions"):
        scheme_of({"quantization_config": config})


@pytest.mark.parametrize(
    "pattern",
    [r".*self_attn\.(q|k|v)_proj$", r"model\.layers\.\d+\.mlp\.experts\.\d+\..*", "(?!lm_head).*"],
)
def test_patterns_of_published_checkpoints_are_understood(pattern):
    config = compressed("pack-quantized", strategy="channel")
    config["config_groups"]["group_0"]["targets"] = ["re:" + pattern]
    assert scheme_of({"quantization_config": config}).targets[0][0] == "re:" + pattern


def case(name: str) -> tuple[dict[str, np.ndarray], dict]:
    [file] = [file for file in CASES if file.stem == name]
    source = safetensors(file)
    parts = {key[2:]: source.read(key) for key in source.tensors if key.startswith("m.")}
    return parts, told(file)


@pytest.mark.parametrize(
    ("name", "change", "said"),
    [
        ("gptq4", lambda p: p.pop("scales"), "'m.scales' is missing beside .g_idx, .qweight"),
        ("gptq4", lambda p: p.update(g_idx=p["g_idx"][:32]), "'m.g_idx' has shape [32]; [64] was"),
        ("gptq4", lambda p: p.update(g_idx=p["g_idx"] + 1), "names groups 1 to 2; 0 to 1 were"),
        ("gptq4", lambda p: p.update(qweight=p["qweight"][0]), "a matrix was expected"),
        ("awq", lambda p: p.update(scales=p["scales"].astype("int8")), "is of type int8; float32"),
        ("fp8", lambda p: p.pop("weight_scale_inv"), "'m.weight_scale_inv' is missing beside"),
        ("fp8", lambda p: p.update(weight=np.ones((32, 64), "float32")), "beside float32 weight"),
        ("fp8_tensor", lambda p: p.update(weight_scale_inv=np.float32([1, 2])), "has shape [2]"),
        ("ct_int4_group", lambda p: p.pop("weight_shape"), "'m.weight_shape' is missing"),
        ("ct_int4_group", lambda p: p.update(weight_shape=np.array([32, 99])), "says [32, 99]"),
        ("ct_int4_zeros", lambda p: p.pop("weight_zero_point"), "zero_point' is missing"),
        ("ct_nvfp4", lambda p: p.pop("weight_global_scale"), "global_scale' is missing"),
        ("bnb_int8", lambda p: p.pop("SCB"), "'m.SCB' is missing beside .weight"),
        ("bnb_int8", lambda p: p.update(weight_format=np.array(1, np.uint8)), "is 1; 0, by rows"),
        ("bnb_nf4", lambda p: p.pop("weight.quant_map"), "quant_map' is missing"),
        ("bnb_nf4", lambda p: p.update(weight=p["weight"][:9]), "has 9 bytes; 1,024 were"),
        (
            "bnb_nf4",
            lambda p: p.update({"weight.quant_state.bitsandbytes__nf4": np.uint8([1])}),
            "holds no JSON object",
        ),
    ],
)
def test_a_wrong_part_is_named(tmp_path, name, change, said):
    parts, config = case(name)
    change(parts)
    with pytest.raises(FormatError) as caught:
        packed(tmp_path, parts, config).read("m.weight")
    assert said in str(caught.value) and "\n" not in str(caught.value)
