"""Llama 4 in Meta's folders, against Meta's program: its names, its files, its logits."""

import json

import jax
import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("llama_models")

from llama_jax.families.llama4_names import META  # noqa: E402
from llama_jax.families.llama4_params import Llama4Shapes, model  # noqa: E402
from llama_jax.families.names import tensors  # noqa: E402
from llama_jax.layers.rope import Llama3Rope  # noqa: E402
from llama_jax.verify.checks import verify  # noqa: E402
from llama_jax.weights.convert import convert  # noqa: E402
from llama_jax.weights.opened import load_params, open_checkpoint  # noqa: E402
from tests.parity.meta_reference import transformer4  # noqa: E402

# float32 logits of order 1 through four layers.
TOLERANCE = 1e-5
CHUNK, LENGTH, V = 8, 29, 62  # a length beyond three chunks
COMMON = {
    "dim": 32, "n_layers": 4, "n_heads": 4, "n_kv_heads": 2, "vocab_size": V, "multiple_of": 8,
    "ffn_exp": 4.0, "ffn_dim_multiplier": 1.2, "nope_layer_interval": 4, "floor_scale": 4.0,
}  # fmt: skip
WIDTHS = Llama4Shapes(V, 104, 56)  # what the numbers above make
SCALED = {"use_scaled_rope": True, "rope_theta": 1e6}
# every n-th layer with experts, a norm of q and k, experts a token, chunk, tuned, what else differs
KINDS = {
    "scout": (1, True, 1, CHUNK, True, SCALED),
    "maverick": (2, False, 1, CHUNK, True, {}),
    "two experts": (1, True, 2, CHUNK, False, {}),
    "no chunks": (2, True, 1, None, False, {"rope_theta": 100.0}),
}


def params(name):
    every, bare, top_k, chunk, tuned, more = KINDS[name]
    moe = {"num_experts": 3, "top_k": top_k, "interleave_moe_layer_step": every}
    own = {"use_qk_norm": bare, "attention_chunk_size": chunk, "attn_temperature_tuning": tuned}
    return COMMON | own | {"moe_args": moe} | more


def drawn(name):
    """Random tensors under the names of Meta's program."""
    rng, found = np.random.default_rng(0), {}
    for one in tensors(model(params(name), WIDTHS), META):
        array = (len(one.shape) == 1) + 0.12 * rng.normal(size=one.shape)
        found[one.tensor] = torch.tensor(array, dtype=torch.float32)
    return found


def fused(found, layers=4):
    """The tensors as they are published: of one file."""
    found = dict(found)
    for i in range(layers):
        at = f"layers.{i}."
        take = lambda name, at=at: found.pop(at + name)  # noqa: E731
        qkv = [take(f"attention.w{one}.weight") for one in "qkv"]
        found[f"{at}attention.wqkv.weight"] = torch.cat(qkv)
        found[f"{at}attention.wqkv.layer_norm_weight"] = take("attention_norm.weight")
        if f"{at}feed_forward.router_DE" not in found:
            both = [take(f"feed_forward.{one}.weight") for one in ("w1", "w3")]
            found[f"{at}feed_forward.mlp.fc1_weight"] = torch.cat(both)
            found[f"{at}feed_forward.mlp.fc2_weight"] = take("feed_forward.w2.weight")
            found[f"{at}feed_forward.mlp.layer_norm_weight"] = take("ffn_norm.weight")
            continue
        found[f"{at}feed_forward.norm.weight"] = take("ffn_norm.weight")
        flat = {"w1": "moe_w_in_eD_F", "w3": "moe_w_swiglu_eD_F", "w2": "moe_w_out_eF_D"}
        for one, name in flat.items():
            tensor = take(f"feed_forward.experts.{one}")
            found[f"{at}feed_forward.experts.{name}"] = tensor.flatten(0, 1)
        shared = {"w1": "w_in_shared_FD", "w3": "w_swiglu_FD", "w2": "w_out_shared_DF"}
        for one, name in shared.items():
            tensor = take(f"feed_forward.shared_expert.{one}.weight")
            found[f"{at}feed_forward.{name}.weight"] = tensor
    return found


def part(name, tensor, i, ways):
    """What the i-th of so many devices has of a tensor."""
    axis = {"wo": 1, "w2": 1, "wq": 0, "wk": 0, "wv": 0, "w1": 0, "w3": 0}
    axis |= {"tok_embeddings": 0, "output": 0}
    short = name.removesuffix(".weight").rsplit(".", 1)[-1]
    if ".experts." in name:
        return tensor.chunk(ways, 1 if short == "w2" else 2)[i].clone()
    return tensor.chunk(ways, axis[short])[i].clone() if short in axis else tensor


def write(folder, name, ways=1, more=()):
    """A folder of Meta's, in so many files."""
    folder.mkdir()
    (folder / "params.json").write_text(json.dumps(params(name)))
    found = drawn(name)
    for i in range(ways):
        own = {key: part(key, tensor, i, ways) for key, tensor in found.items()}
        torch.save(fused(own) | dict(more), folder / f"consolidated.{i:02}.pth")
    return found


def ids(rows=2):
    return np.random.default_rng(1).integers(0, V, (rows, LENGTH)).astype(np.int32)


def ours(folder):
    opened = open_checkpoint(folder, pickle=True)
    module, weights = opened.model.build(), load_params(opened)
    with jax.default_matmul_precision("highest"):
        return np.asarray(module.apply({"params": weights}, ids()))


@pytest.mark.parametrize("name", KINDS)
def test_logits_are_those_of_metas_program_past_three_chunks(tmp_path, name):
    found = write(tmp_path / "meta", name, ways=2 if name == "scout" else 1)
    # The published names go through the program's own hooks.
    expected = transformer4(params(name), fused(found), LENGTH)(ids())
    np.testing.assert_allclose(ours(tmp_path / "meta"), expected, atol=TOLERANCE)
    opened = open_checkpoint(tmp_path / "meta", pickle=True)
    rope = opened.model.stack.pattern[0].attention.rope
    assert isinstance(rope, Llama3Rope) == (name == "scout")
    if name == "scout":
        assert (rope.factor, rope.high) == (16.0, 1.0)


def test_metas_decoding_looks_across_chunks_and_ours_does_not(tmp_path):
    found = write(tmp_path / "meta", "scout")
    program = transformer4(params("scout"), found, LENGTH)
    whole = program(ids())
    program(ids()[:, : 2 * CHUNK])  # the prompt, to the end of a chunk
    step = program(ids()[:, 2 * CHUNK : 2 * CHUNK + 1], 2 * CHUNK)[:, 0]
    # The first token of a chunk sees itself alone in three of four layers, but not in this step.
    assert np.abs(step - whole[:, 2 * CHUNK]).max() > 100 * TOLERANCE
    opened = open_checkpoint(tmp_path / "meta", pickle=True)
    module, variables = opened.model.build(), {"params": load_params(opened)}
    cache, there = opened.model.empty_cache(2, LENGTH), np.ones((2, 2 * CHUNK), bool)
    extend = jax.jit(lambda *args: module.apply(variables, *args, method="extend"))
    last, cache = extend(ids()[:, : 2 * CHUNK], cache, there)
    for t in range(2 * CHUNK, LENGTH):
        np.testing.assert_allclose(last, whole[:, t - 1], atol=TOLERANCE)
        last, cache = extend(ids()[:, t : t + 1], cache, there[:, :1])
    np.testing.assert_allclose(last, whole[:, -1], atol=TOLERANCE)


def test_a_folder_of_metas_becomes_one_of_transformers_bit_by_bit(tmp_path):
    pytest.importorskip("transformers")
    from safetensors.numpy import load_file

    eyes = {"vision_projection.weight": torch.zeros(32, 8)}  # of the other half, not read
    found = write(tmp_path / "meta", "maverick", more=eyes)
    ledger = verify(tmp_path / "meta", pickle=True)  # against transformers
    assert not ledger.failed, ledger.text()
    assert "vision_projection.weight" in ledger.line("not read").text
    convert(tmp_path / "meta", tmp_path / "hf", "huggingface", pickle=True)
    theirs = load_file(tmp_path / "hf/model.safetensors")
    at = "model.layers.1.feed_forward."
    mine = {name: one.numpy() for name, one in found.items()}
    both = np.concatenate([mine[f"layers.1.feed_forward.experts.{w}"] for w in ("w1", "w3")], 2)
    np.testing.assert_array_equal(theirs[f"{at}experts.gate_up_proj"], both)
    np.testing.assert_array_equal(
        theirs[f"{at}router.weight"], mine["layers.1.feed_forward.router_DE"].T
    )
    np.testing.assert_array_equal(
        theirs["model.layers.0.self_attn.q_proj.weight"], mine["layers.0.attention.wq.weight"]
    )


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"multiple_of": 16}, "experts of width 64, the tensors have 56"),
        ({"lora_args": {"rank": 8}}, "lora_args="),
        ({"n_heads": 5}, "n_heads=5; a number that makes even heads of dim=32"),
        ({"moe_args": {"experts": 3}}, "moe_args="),
        ({"rope_theta": "x"}, "rope_theta='x'; a positive number"),
    ],
)
def test_a_params_json_that_is_not_of_the_tensors_is_one_line(change, said):
    with pytest.raises(ValueError, match=said):
        model(params("scout") | change, WIDTHS)
