"""A family added by one file and a name in the list has transformers' logits, in and out."""

import importlib
import sys

import numpy as np
import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from safetensors.numpy import load_file  # noqa: E402

from llama_jax import families  # noqa: E402
from llama_jax.verify.checks import verify  # noqa: E402
from llama_jax.weights.convert import convert  # noqa: E402

TOLERANCE = 1e-5  # float32 logits of order 1 through two or three layers

SIZES = {
    "vocab_size": 61, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 32_768,
    "pad_token_id": None, "bos_token_id": 1, "eos_token_id": 2, "tie_word_embeddings": False,
}  # fmt: skip
WINDOWS = {"num_hidden_layers": 3, "use_sliding_window": True, "sliding_window": 7}
KINDS = {"plain": ({}, ("gguf", "orbax")), "windows": (WINDOWS | {"max_window_layers": 1}, ())}


@pytest.mark.parametrize("kind", KINDS)
def test_a_family_in_a_file_of_its_own_is_read_and_written(monkeypatch, tmp_path, kind):
    own = importlib.import_module("tests.parity.qwen2")
    monkeypatch.setitem(sys.modules, "llama_jax.families.qwen2", own)
    monkeypatch.setattr(families, "NAMES", (*families.NAMES, "qwen2"))
    fields, formats = KINDS[kind]
    config = transformers.Qwen2Config(**SIZES | fields)
    config._attn_implementation = "eager"
    torch.manual_seed(0)
    theirs = transformers.Qwen2ForCausalLM(config).eval()
    with torch.no_grad():
        for parameter in theirs.parameters():  # biases are zero at first
            parameter.add_(0.05 * torch.randn_like(parameter))
    theirs.save_pretrained(tmp_path / "theirs")

    ledger = verify(tmp_path / "theirs")
    assert not ledger.failed, ledger.text()
    for line in ("logits, positions from 0", "decode, 4 rows, left-padded"):
        assert ledger.line(line).numbers["found"] <= TOLERANCE

    expected = load_file(tmp_path / "theirs/model.safetensors")
    for format in ("huggingface", *formats):
        out = tmp_path / (f"{format}.gguf" if format == "gguf" else format)
        convert(tmp_path / "theirs", out, format)
        convert(out, tmp_path / f"{format}_back", "huggingface")
        found = load_file(tmp_path / f"{format}_back/model.safetensors")
        assert sorted(found) == sorted(expected)
        for name, tensor in expected.items():
            np.testing.assert_array_equal(found[name], tensor)
