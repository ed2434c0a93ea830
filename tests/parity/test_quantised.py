"""Quantised folders beside the programs that define them: numbers bit for bit, logits to 1e-5."""

import json

import jax.numpy as jnp
import numpy as np
import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from safetensors.torch import save_file  # noqa: E402

from llama_jax.formats.quantised.expand import expanded  # noqa: E402
from llama_jax.formats.quantised.scheme import scheme_of  # noqa: E402
from llama_jax.formats.source import safetensors  # noqa: E402
from llama_jax.verify.reference import reference  # noqa: E402
from llama_jax.weights.convert import convert  # noqa: E402
from llama_jax.weights.opened import load_params, open_checkpoint  # noqa: E402
from tests.parity.packed import CASES, FOLDER, matrix  # noqa: E402

# Folders of GPTQModel's own, when it is imported; and what torch says of ours.
pytestmark = pytest.mark.filterwarnings("ignore:Implicitly cleaning up:ResourceWarning")

# float32 logits of order 1 through two layers.
TOLERANCE = 1e-5
CONFIG = {
    "vocab_size": 64, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 128,
    "bos_token_id": 1, "eos_token_id": 2, "tie_word_embeddings": False,
}  # fmt: skip


def installed(name: str):
    if CASES[name].missing:
        pytest.skip(f"{CASES[name].package} is not installed")
    return CASES[name]


def as_bytes(tensor) -> np.ndarray:
    return tensor.contiguous().view(-1).view(torch.uint8).numpy()


@pytest.mark.parametrize("name", CASES)
def test_odd_sizes_too_are_unpacked_bit_for_bit(name, tmp_path):
    case = installed(name)
    # More than 256 blocks of 64 for bitsandbytes; rows that are no whole number of its blocks.
    shape = (96, 224) if name.startswith("bnb") else (96, 128)
    parts, dense = case.pack(matrix(*shape, seed=3))
    parts = {f"m.{part}": value.contiguous() for part, value in parts.items()}
    save_file(parts, tmp_path / "model.safetensors")
    source = expanded(safetensors(tmp_path), scheme_of({"quantization_config": case.config}))
    found = source.read("m.weight")
    np.testing.assert_array_equal(
        np.ascontiguousarray(found).view(np.uint8).ravel(), as_bytes(dense)
    )


@pytest.mark.parametrize("name", CASES)
def test_the_cases_of_the_other_tests_are_what_the_package_writes(name):
    case = installed(name)
    parts, dense = case.pack(matrix())
    stored = safetensors(FOLDER / f"{name}.safetensors")
    wanted = {f"m.{part}": value for part, value in parts.items()} | {"dense": dense}
    assert sorted(stored.tensors) == sorted(wanted)
    for key, value in wanted.items():
        np.testing.assert_array_equal(
            np.ascontiguousarray(stored.read(key)).view(np.uint8).ravel(), as_bytes(value)
        )


def quantised(folder, name: str):
    """A tiny Llama whose layers are packed, and the same model with the numbers that they hold."""
    case = installed(name)
    torch.manual_seed(0)
    config = transformers.LlamaConfig(**CONFIG, attn_implementation="eager")
    model = transformers.LlamaForCausalLM(config).eval()
    stored = {}
    for key, value in model.state_dict().items():
        module, _, kind = key.rpartition(".")
        if kind != "weight" or not module.endswith("_proj"):
            stored[key] = value
            continue
        parts, dense = case.pack(0.3 * torch.randn_like(value))
        stored |= {f"{module}.{part}": made.contiguous() for part, made in parts.items()}
        value.copy_(dense)
    folder.mkdir()
    save_file(stored, folder / "model.safetensors", {"format": "pt"})
    about = config.to_dict() | {"quantization_config": case.config}
    about["architectures"] = ["LlamaForCausalLM"]
    (folder / "config.json").write_text(json.dumps(about))
    return folder, model


def logits(folder, ids: np.ndarray) -> np.ndarray:
    opened = open_checkpoint(folder)
    params = load_params(opened)
    found, _ = opened.model.build().apply({"params": params}, jnp.asarray(ids), method="decode")
    return np.asarray(found)


WIRED = ("fbgemm_fp8", "ct_nvfp4", "gptq4_ordered", "awq", "bnb_int8", "bnb_nf4_double")


@pytest.mark.parametrize("name", WIRED)
def test_a_quantised_model_has_the_logits_of_its_numbers(name, tmp_path):
    folder, model = quantised(tmp_path / name, name)
    ids = np.random.default_rng(0).integers(0, CONFIG["vocab_size"], (2, 40))
    with torch.no_grad():
        theirs = model(torch.tensor(ids)).logits.numpy()
    np.testing.assert_allclose(logits(folder, ids), theirs, atol=TOLERANCE, rtol=0)


READ = ("fp8_tensor", "ct_int4_zeros", "ct_w8_channel", "ct_float8_channel", "ct_nvfp4")


@pytest.mark.parametrize("name", [*READ, "bnb_int8", "bnb_nf4_double", "bnb_fp4"])
def test_transformers_reads_the_same_model_from_the_folder(name, tmp_path):
    folder, _ = quantised(tmp_path / name, name)
    ids = np.random.default_rng(0).integers(0, CONFIG["vocab_size"], 40)
    found = reference(open_checkpoint(folder))
    assert found.notes[0].endswith(f"expanded from {CASES[name].config['quant_method']}")
    theirs = found.logits(list(ids))
    np.testing.assert_allclose(logits(folder, ids[None])[0], theirs, atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize("name", ["ct_int4_group", "bnb_nf4_double"])
def test_what_convert_writes_of_a_quantised_folder_is_plain(name, tmp_path):
    folder, model = quantised(tmp_path / name, name)
    said = []
    convert(folder, tmp_path / "out", "huggingface", say=said.append)
    assert any("plain" in line for line in said)
    assert "quantization_config" not in json.loads((tmp_path / "out/config.json").read_text())
    plain = transformers.LlamaForCausalLM.from_pretrained(tmp_path / "out", dtype=torch.float32)
    for key, value in model.state_dict().items():
        torch.testing.assert_close(plain.state_dict()[key], value, atol=0, rtol=0)
