"""Every kind of rope and every bias: transformers' tables and logits, in, out and in decoding."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from safetensors.numpy import load_file  # noqa: E402
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding  # noqa: E402

from experiments.conformance import drawn  # noqa: E402
from llama_jax.families.huggingface_rope import rope as read_rope  # noqa: E402
from llama_jax.families.huggingface_rope import scaling  # noqa: E402
from llama_jax.families.sizes import sizes  # noqa: E402
from llama_jax.generate.engine import Engine  # noqa: E402
from llama_jax.verify.checks import verify  # noqa: E402
from llama_jax.verify.declared import said  # noqa: E402
from llama_jax.verify.rope import rope as rope_section  # noqa: E402
from llama_jax.weights.convert import convert  # noqa: E402
from llama_jax.weights.opened import load_params, open_checkpoint  # noqa: E402

# The figure: cosines and sines to position 131,071; float32 logits of order 1.
TOLERANCE = 1e-5
PAIRS, LAST = 64, 131_071
CONTEXT, ORIGINAL = 4096, "original_max_position_embeddings"

dice = np.random.default_rng(0)
SHORT, LONG = (np.sort(1 + top * dice.random(PAIRS)).round(4).tolist() for top in (0.3, 40.0))
FACTORS = {"short_factor": SHORT, "long_factor": LONG}
KINDS = {
    "linear": {"rope_type": "linear", "factor": 4.0},
    "linear, whole": {"rope_type": "linear", "factor": 4},
    "dynamic": {"rope_type": "dynamic", "factor": 2.0},
    "yarn": {"rope_type": "yarn", "factor": 16.0, ORIGINAL: 4096},
    "yarn, all fields": {"rope_type": "yarn", "factor": 40, ORIGINAL: 4096, "beta_fast": 16}
    | {"beta_slow": 2, "mscale": 1.0, "mscale_all_dim": 0.7, "truncate": False},
    "yarn, a gain": {"rope_type": "yarn", "factor": 4.0, ORIGINAL: 1024, "attention_factor": 0.8},
    "yarn, no context before": {"rope_type": "yarn", "factor": 4.0},
    "longrope": {"rope_type": "longrope", "factor": 32.0, ORIGINAL: 1024} | FACTORS,
    "longrope, a gain": {"rope_type": "longrope", "attention_factor": 1.2, ORIGINAL: 1024}
    | FACTORS,
    "longrope, no factor": {"rope_type": "longrope", ORIGINAL: 1024} | FACTORS,
}  # fmt: skip


def tables(fields, theta, positions):
    """transformers' cosines and sines, [T, H/2], and its frequencies."""
    config = transformers.LlamaConfig(
        hidden_size=4 * PAIRS, num_attention_heads=2, max_position_embeddings=CONTEXT,
        rope_parameters={"rope_theta": theta, **fields},
    )  # fmt: skip
    module = LlamaRotaryEmbedding(config)
    with torch.no_grad():
        cos, sin = module(torch.zeros(1), torch.tensor(positions)[None])
    return cos[0, :, :PAIRS].numpy(), sin[0, :, :PAIRS].numpy(), module.inv_freq.numpy()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("last", [1000, LAST])
def test_tables_are_transformers_to_the_last_position(kind, last):
    positions = np.unique(np.geomspace(1, last, 200).astype(int))
    rope = read_rope(
        {"rope_theta": 1e4, "rope_scaling": KINDS[kind], "max_position_embeddings": CONTEXT}
    )
    cos, sin, f = tables(KINDS[kind], 1e4, positions)
    angles = jax.jit(lambda p: rope.angles(p, 2 * PAIRS))(jnp.array(positions)[None, :, None])[0]
    # torch's power of a vector is a unit in the last place beside the rounded one here and there,
    # 0.008 radians at the last position; such pairs are told apart by their frequencies.
    ours = np.asarray(rope.angles(jnp.array([[[1], [last]]]), 2 * PAIRS))[0, 0]
    assert np.all(np.abs(ours - f) <= np.spacing(f))
    same = ours == f
    assert same.sum() >= PAIRS - 2
    for found, expected in ((jnp.cos(angles), cos), (jnp.sin(angles), sin)):
        difference = np.abs(np.asarray(found) * np.float32(rope.gain) - expected)
        assert difference[:, same].max() <= TOLERANCE


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_written_of_a_scaling_is_read_as_the_same(kind):
    around = {"rope_theta": 1e4, "max_position_embeddings": CONTEXT}
    rope = read_rope({**around, "rope_scaling": KINDS[kind]})
    assert read_rope({**around, "rope_scaling": scaling(rope)}) == rope
    assert read_rope({**around, "rope_parameters": {**KINDS[kind], "rope_theta": 1e4}}) == rope
    older = {**KINDS[kind], "type": KINDS[kind]["rope_type"].replace("longrope", "su")}
    del older["rope_type"]
    original = older.pop(ORIGINAL, None)
    outer = {} if original is None else {ORIGINAL: original}
    assert read_rope({**around, **outer, "rope_scaling": older}) == rope


SIZES = {
    "vocab_size": 61, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 32_768,
    "pad_token_id": None, "bos_token_id": 1, "eos_token_id": 2, "tie_word_embeddings": False,
    "head_dim": 16,
}  # fmt: skip
SOME = {"short_factor": SHORT[::8], "long_factor": LONG[::8]}
# name -> fields of the config; the formats that can say it, beside Hugging Face's
MODELS = {
    "linear": ({"rope_parameters": {"rope_type": "linear", "factor": 4.0}}, ("gguf", "orbax")),
    "dynamic": ({"rope_parameters": {"rope_type": "dynamic", "factor": 2.0}}, ("orbax",)),
    "yarn": ({"rope_parameters": KINDS["yarn"]}, ("gguf", "orbax")),
    "longrope": ({"rope_parameters": KINDS["longrope"] | SOME}, ("gguf", "orbax")),
    "biases": ({"attention_bias": True, "mlp_bias": True}, ("gguf", "orbax")),
}


def made(folder, **fields):
    """A folder as transformers writes it, and the model."""
    fields = {key: dict(v) if isinstance(v, dict) else v for key, v in fields.items()}
    if "rope_parameters" in fields:
        fields["rope_parameters"].setdefault("rope_theta", 1e4)
    config = transformers.LlamaConfig(**SIZES | fields)
    config._attn_implementation = "eager"
    return folder, drawn(config, folder)


@pytest.mark.parametrize("name", MODELS)
def test_a_model_has_transformers_logits_and_goes_through_formats_bit_by_bit(tmp_path, name):
    fields, formats = MODELS[name]
    folder, theirs = made(tmp_path / "theirs", **fields)
    ledger = verify(folder)
    assert not ledger.failed, ledger.text()
    for line in ("logits, positions from 0", f"logits, second half up to {32_767:,}"):
        assert ledger.line(line).numbers["found"] <= TOLERANCE
    wanted = load_file(folder / "model.safetensors")
    model = open_checkpoint(folder).model
    for format in ("huggingface", *formats):
        out = tmp_path / ("x.gguf" if format == "gguf" else format)
        convert(folder, out, format)
        assert open_checkpoint(out).model == model
        if format == "gguf":
            size = sizes(model)
            section = rope_section(size.rope, size.head_dim, said(open_checkpoint(out)))
            assert [line.status for line in section.lines[1:]] == ["ok"] * 4
        convert(out, tmp_path / f"{format}_back", "huggingface")
        found = load_file(tmp_path / f"{format}_back/model.safetensors")
        assert found.keys() == wanted.keys()
        assert all(found[key].tobytes() == wanted[key].tobytes() for key in wanted)
    load = transformers.AutoModelForCausalLM.from_pretrained
    again = load(tmp_path / "huggingface", attn_implementation="eager").eval()
    ids = torch.tensor(dice.integers(0, 61, (1, 40)))
    with torch.no_grad():
        assert torch.equal(again(ids).logits, theirs(ids).logits)


LENGTHS = {
    "dynamic": {"rope_parameters": {"rope_type": "dynamic", "factor": 2.0}}
    | {"max_position_embeddings": 40},
    "longrope": {"rope_parameters": KINDS["longrope"] | SOME | {ORIGINAL: 40}},
}


@pytest.mark.parametrize("name", LENGTHS)
def test_a_text_beyond_the_first_context_is_read_and_written_as_transformers_does(
    tmp_path, name, monkeypatch
):
    """Prefill in one piece, also where others would be cut; then tokens by the length reached."""
    from dataclasses import replace

    folder, theirs = made(tmp_path, **LENGTHS[name])
    opened = open_checkpoint(folder)
    monkeypatch.setattr("llama_jax.generate.engine.CHUNKS", (32,))
    engine = Engine(replace(opened.model, context=128).build(), load_params(opened))
    assert engine.steady == 40
    for length in (36, 70):
        ids = dice.integers(0, 61, length).tolist()
        rows = engine.rows(1, 128)
        logits = rows.feed([ids])
        new, logp = (np.concatenate(x, 1)[0] for x in zip(*rows.tokens(logits, 9), strict=True))
        cache, fed = transformers.DynamicCache(config=theirs.config), torch.tensor([ids])
        for token, logprob in zip(new, logp, strict=True):
            with torch.no_grad():
                out = theirs(fed, cache=cache, use_cache=True)
            scores = torch.log_softmax(out.logits[0, -1], -1)
            assert abs(float(scores[token]) - logprob) <= TOLERANCE
            assert int(scores.argmax()) == token
            fed = torch.tensor([[token]])


def test_biases_of_gguf_have_llama_cpp_s_names(tmp_path):
    from gguf import MODEL_ARCH, get_tensor_name_map

    folder, _ = made(tmp_path / "theirs", **MODELS["biases"][0])
    convert(folder, tmp_path / "x.gguf", "gguf")
    source = open_checkpoint(tmp_path / "x.gguf").source
    assert source is not None
    names = get_tensor_name_map(MODEL_ARCH.LLAMA, 2)
    biases = [n for n in load_file(folder / "model.safetensors") if n.endswith(".bias")]
    assert len(biases) == 14
    assert {f"{names.get_name(n.removesuffix('.bias'))}.bias" for n in biases} <= set(
        source.tensors
    )


def test_a_config_keeps_the_kind_in_the_notation_of_old(tmp_path):
    folder, _ = made(tmp_path / "theirs", **MODELS["yarn"][0])
    convert(folder, tmp_path / "ours", "huggingface")
    config = json.loads((tmp_path / "ours/config.json").read_text())
    assert config["rope_scaling"]["rope_type"] == "yarn" and config["rope_theta"] == 1e4
