"""Relatives of Llama that differ by a switch: transformers' logits, in and out, past the window."""

import json

import numpy as np
import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from safetensors.numpy import load_file  # noqa: E402

from llama_jax.verify.checks import verify  # noqa: E402
from llama_jax.weights.convert import convert  # noqa: E402
from llama_jax.weights.opened import open_checkpoint  # noqa: E402

# float32 logits of order 1 through two to eight layers.
TOLERANCE = 1e-5
WINDOW = 7  # far below the 192 tokens that `verify` reads

COMMON = {
    "vocab_size": 61, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 32_768,
    "pad_token_id": None, "bos_token_id": 1, "eos_token_id": 2, "tie_word_embeddings": False,
}  # fmt: skip
SCALED = {"rope_type": "llama3", "rope_theta": 1e6, "factor": 16.0, "low_freq_factor": 1.0}
SCALED |= {"high_freq_factor": 4.0, "original_max_position_embeddings": 8192}
# name -> transformers' class, what differs, blocks of the pattern
RELATIVES = {
    "mistral": ("Mistral", {"sliding_window": WINDOW}, 1),
    "mistral_v3": ("Mistral", {"sliding_window": None, "head_dim": 24}, 1),
    "smollm3": ("SmolLM3", {"num_hidden_layers": 8, "tie_word_embeddings": True}, 4),
    "smollm3_windows": (
        "SmolLM3",
        {"num_hidden_layers": 4, "no_rope_layers": [0, 1, 0, 1], "use_sliding_window": True}
        | {"sliding_window": WINDOW},
        2,
    ),
    # Heads of 128, which transformers takes for granted in a GGUF file.
    "qwen3": ("Qwen3", {"head_dim": 128, "rope_parameters": {"rope_theta": 1e6}}, 1),
    "qwen3_windows": (
        "Qwen3",
        {"num_hidden_layers": 3, "head_dim": 32, "use_sliding_window": True}
        | {"sliding_window": WINDOW, "max_window_layers": 1, "tie_word_embeddings": True},
        3,
    ),
    "cwm": (
        "Cwm",
        {"num_hidden_layers": 8, "head_dim": 16, "sliding_window": WINDOW}
        | {"rope_parameters": SCALED},
        4,
    ),
}  # fmt: skip
GGUF = {"mistral_v3": "llama", "smollm3": "smollm3", "qwen3": "qwen3"}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """name -> folder, as transformers writes it, and transformers' model."""
    made = {}

    def make(name):
        if name not in made:
            kind, fields, _ = RELATIVES[name]
            config = getattr(transformers, f"{kind}Config")(**COMMON | fields)
            config._attn_implementation = "eager"
            torch.manual_seed(0)
            theirs = getattr(transformers, f"{kind}ForCausalLM")(config).eval()
            with torch.no_grad():
                for parameter in theirs.parameters():
                    parameter.add_(0.05 * torch.randn_like(parameter))
            folder = tmp_path_factory.mktemp(name)
            theirs.save_pretrained(folder)
            made[name] = folder, theirs
        return made[name]

    return make


def check(ledger):
    assert not ledger.failed, ledger.text()
    for line in ("logits, positions from 0", f"logits, second half up to {32_767:,}"):
        assert ledger.line(line).numbers["found"] <= TOLERANCE
    for line in ("prefill, one row", "decode, one row", "decode, 4 rows, left-padded"):
        assert ledger.line(line).numbers["found"] <= TOLERANCE


@pytest.mark.parametrize("name", RELATIVES)
def test_a_relative_has_transformers_logits_and_decodes_as_it_is_trained(folders, name):
    folder, _ = folders(name)
    opened = open_checkpoint(folder)
    assert opened.family is not None and name.startswith(opened.family.name)
    assert len(opened.model.stack.pattern) == RELATIVES[name][2]
    ledger = verify(folder)
    check(ledger)
    windows = [line.text for line in ledger.lines if line.name == "window"]
    assert bool(windows) == bool(RELATIVES[name][1].get("sliding_window"))
    rope = ledger.line("rope").text
    assert ("but none in 2 of" in rope) == name.startswith("smollm3")


@pytest.mark.parametrize("name", RELATIVES)
def test_what_we_write_of_a_relative_is_bit_by_bit_its_own(folders, tmp_path, name):
    folder, theirs = folders(name)
    convert(folder, tmp_path / "ours", "huggingface")
    before, after = (load_file(p / "model.safetensors") for p in (folder, tmp_path / "ours"))
    assert before.keys() == after.keys()
    assert all(before[key].tobytes() == after[key].tobytes() for key in before)
    assert open_checkpoint(tmp_path / "ours").model == open_checkpoint(folder).model
    load = transformers.AutoModelForCausalLM.from_pretrained
    again = load(tmp_path / "ours", attn_implementation="eager").eval()
    assert type(again) is type(theirs)
    ids = torch.tensor(np.random.default_rng(1).integers(0, 61, (2, 4 * WINDOW)))
    with torch.no_grad():
        assert torch.equal(again(ids).logits, theirs(ids).logits)


@pytest.mark.parametrize("name", GGUF)
def test_a_relative_goes_through_gguf_bit_by_bit(folders, tmp_path, name):
    folder, _ = folders(name)
    convert(folder, tmp_path / "x.gguf", "gguf")
    opened = open_checkpoint(tmp_path / "x.gguf")
    assert opened.family is not None and opened.family.name == GGUF[name]
    assert opened.model == open_checkpoint(folder).model
    convert(tmp_path / "x.gguf", tmp_path / "back", "huggingface")
    before, after = (load_file(p / "model.safetensors") for p in (folder, tmp_path / "back"))
    assert all(before[key].tobytes() == after[key].tobytes() for key in before)
    config = json.loads((tmp_path / "back/config.json").read_text())
    assert config["model_type"] == GGUF[name]


def test_gguf_names_are_those_of_the_gguf_package(folders, tmp_path):
    from gguf import MODEL_ARCH, get_tensor_name_map

    for name, arch in (("smollm3", MODEL_ARCH.SMOLLM3), ("qwen3", MODEL_ARCH.QWEN3)):
        folder, _ = folders(name)
        convert(folder, tmp_path / f"{name}.gguf", "gguf")
        there = open_checkpoint(tmp_path / f"{name}.gguf").source
        names = get_tensor_name_map(arch, 8)
        for tensor in load_file(folder / "model.safetensors"):
            assert f"{names.get_name(tensor.removesuffix('.weight'))}.weight" in there.tensors


def test_a_gguf_of_qwen3_has_transformers_logits(folders, tmp_path):
    pytest.importorskip("accelerate")
    convert(folders("qwen3")[0], tmp_path / "x.gguf", "gguf")
    check(verify(tmp_path / "x.gguf"))


def test_a_run_of_a_relative_is_written_in_the_words_of_its_family(folders, tmp_path):
    folder, _ = folders("cwm")
    convert(folder, tmp_path / "run", "orbax")
    convert(tmp_path / "run", tmp_path / "back", "huggingface")
    assert json.loads((tmp_path / "back/config.json").read_text())["model_type"] == "cwm"
    assert open_checkpoint(tmp_path / "back").model == open_checkpoint(folder).model
