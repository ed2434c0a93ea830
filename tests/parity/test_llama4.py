"""Llama 4's language model: transformers' and Meta's logits, past three chunks, in and out."""

import jax
import numpy as np
import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from safetensors.numpy import load_file  # noqa: E402

from llama_jax.verify.checks import verify  # noqa: E402
from llama_jax.weights.convert import convert  # noqa: E402
from llama_jax.weights.opened import load_params, open_checkpoint  # noqa: E402

# float32 logits of order 1 through four layers.
TOLERANCE = 1e-5
CHUNK, FLOOR, LENGTH = 8, 4, 29  # a length beyond three chunks
V, D, HEAD = 61, 32, 8

SCALED = {"rope_type": "llama3", "factor": 16.0, "low_freq_factor": 1.0, "high_freq_factor": 1.0}
SCALED |= {"original_max_position_embeddings": 32, "rope_theta": 100.0}  # so that it matters here
COMMON = {
    "vocab_size": V, "hidden_size": D, "num_hidden_layers": 4, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": HEAD, "intermediate_size": 24,
    "intermediate_size_mlp": 40, "num_local_experts": 3, "floor_scale": FLOOR,
    "max_position_embeddings": 256, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": None,
}  # fmt: skip
# every n-th layer with experts, a norm of q and k, experts a token, chunk, tuned, what else differs
KINDS = {
    "scout": (1, True, 1, CHUNK, True, {"rope_parameters": SCALED}),
    "maverick": (2, False, 1, CHUNK, True, {}),
    "two experts": (1, True, 2, CHUNK, False, {"attention_bias": True}),
    "no chunks": (2, True, 1, None, False, {"tie_word_embeddings": True}),
}


def made(name):
    """Transformers' model of random weights."""
    every, bare, top_k, chunk, tuned, more = KINDS[name]
    config = transformers.Llama4TextConfig(
        **COMMON,
        interleave_moe_layer_step=every,
        use_qk_norm=bare,
        num_experts_per_tok=top_k,
        attention_chunk_size=chunk,
        attn_temperature_tuning=tuned,
        **more,
    )
    config._attn_implementation = "eager"
    torch.manual_seed(0)
    model = transformers.Llama4ForCausalLM(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(0.12 * torch.randn_like(parameter) + (parameter.ndim == 1))
    return model


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """name -> the folder that transformers writes, and its model."""
    kept = {}

    def make(name):
        if name not in kept:
            model, folder = made(name), tmp_path_factory.mktemp("llama4")
            model.save_pretrained(folder)
            kept[name] = folder, model
        return kept[name]

    return make


def ids(rows=2, length=LENGTH):
    return np.random.default_rng(1).integers(0, V, (rows, length)).astype(np.int32)


def ours(folder):
    """Our logits, as a function of ids, and the model."""
    opened = open_checkpoint(folder)
    module, params = opened.model.build(), load_params(opened)

    def logits(x):
        with jax.default_matmul_precision("highest"):
            return np.asarray(module.apply({"params": params}, x))

    return logits, opened.model


@pytest.mark.parametrize("name", KINDS)
def test_logits_are_those_of_transformers_past_three_chunks(folders, name):
    folder, theirs = folders(name)
    logits, model = ours(folder)
    with torch.no_grad():
        expected = theirs(torch.tensor(ids())).logits.numpy()
    np.testing.assert_allclose(logits(ids()), expected, atol=TOLERANCE)
    assert len(model.stack.pattern) == 4


@pytest.mark.parametrize("name", KINDS)
def test_verify_states_what_was_read_and_finds_decoding_right(folders, name):
    every, bare, top_k, chunk, tuned, _ = KINDS[name]
    ledger = verify(folders(name)[0])
    assert not ledger.failed, ledger.text()
    for line in ("logits, positions from 0", "prefill, one row", "decode, one row"):
        assert ledger.line(line).numbers["found"] <= TOLERANCE
    assert ledger.line("decode, 4 rows, left-padded").numbers["found"] <= TOLERANCE
    told = {line.name: line.text for line in ledger.lines}
    count = 4 // every
    assert told["experts"] == (
        f"{top_k} of 3 and a shared one a token, each of 24, in {count} of 4 layers"
    )
    assert told.get("chunk") == (f"{CHUNK} in 3 of 4 layers" if chunk else None)
    assert told.get("norm of q and k") == ("without a scale, in 3 of 4" if bare else None)
    assert ("queries grow" in told) == tuned
    assert "but none in 1 of 4 layers" in told["rope"]
    assert ("high 1" in told["rope"]) == (name == "scout")


@pytest.mark.parametrize("name", KINDS)
def test_what_we_write_is_bit_by_bit_what_transformers_wrote(folders, tmp_path, name):
    folder, theirs = folders(name)
    convert(folder, tmp_path / "run", "orbax")
    convert(tmp_path / "run", tmp_path / "ours", "huggingface")
    before, after = (load_file(p / "model.safetensors") for p in (folder, tmp_path / "ours"))
    assert before.keys() == after.keys()
    assert all(before[key].tobytes() == after[key].tobytes() for key in before)
    assert open_checkpoint(tmp_path / "ours").model == open_checkpoint(folder).model
    load = transformers.AutoModelForCausalLM.from_pretrained
    again = load(tmp_path / "ours", attn_implementation="eager").eval()
    with torch.no_grad():
        x = torch.tensor(ids())
        assert torch.equal(again(x).logits, theirs(x).logits)
