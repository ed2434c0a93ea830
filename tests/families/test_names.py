"""Names of tensors, their shapes, and that writing undoes reading."""

from dataclasses import replace

import numpy as np
import pytest

from llama_jax.errors import UserError
from llama_jax.families.gguf_names import HALVES, PAIRS
from llama_jax.families.huggingface_names import NAMES as HUGGING_FACE
from llama_jax.families.llama_meta import NAMES as META
from llama_jax.families.names import tensors
from llama_jax.families.sizes import Sizes, build, sizes
from llama_jax.layers.rope import Rope

SIZES = Sizes(
    vocab=7, width=12, layers=2, heads=4, kv_heads=2, head_dim=6, hidden=10, eps=1e-5, rope=Rope(),
    context=16, tied=False,
)  # fmt: skip
FORMATS = {"huggingface": HUGGING_FACE, "meta": META, "gguf": PAIRS, "gguf, halves": HALVES}


def model(layers, tied=False, **fields):
    return build(replace(SIZES, layers=layers, tied=tied, **fields))


@pytest.mark.parametrize("table", FORMATS.values(), ids=FORMATS)
def test_writing_undoes_reading(table):
    for name in tensors(model(2), table):
        tensor = np.random.default_rng(0).normal(size=name.shape)
        np.testing.assert_array_equal(name.theirs(name.ours(tensor)), tensor)


def test_every_format_names_the_same_weights_once():
    found = {
        key: [(n.path, n.layer) for n in tensors(model(3), table)] for key, table in FORMATS.items()
    }
    assert sorted(found["huggingface"]) == sorted(found["meta"]) == sorted(found["gguf"])
    assert len(found["meta"]) == len(set(found["meta"])) == 3 * 9 + 3


def test_shapes_are_those_of_the_files():
    shapes = {n.tensor: n.shape for n in tensors(model(1, tied=True), HUGGING_FACE)}
    assert shapes["model.layers.0.self_attn.q_proj.weight"] == (24, 12)
    assert shapes["model.layers.0.self_attn.k_proj.weight"] == (12, 12)
    assert shapes["model.layers.0.mlp.down_proj.weight"] == (12, 10)
    assert "lm_head.weight" not in shapes


def test_metas_pairs_lie_side_by_side_and_hugging_faces_in_halves():
    """As in transformers' conversion: view(heads, head_dim / 2, 2, D).transpose(1, 2)."""
    meta = np.arange(24 * 12).reshape(24, 12)
    hugging_face = meta.reshape(4, 3, 2, 12).transpose(0, 2, 1, 3).reshape(24, 12)
    [m] = [n for n in tensors(model(1, tied=True), META) if n.path.endswith("attn/q/w")]
    [h] = [n for n in tensors(model(1, tied=True), HUGGING_FACE) if n.path.endswith("attn/q/w")]
    np.testing.assert_array_equal(m.ours(meta), h.ours(hugging_face))


@pytest.mark.parametrize("scan", [True, False], ids=["stacked", "apart"])
def test_layers_of_a_pattern_are_named_along_the_model(scan):
    """Layer 5 of a pattern of four is the second block of the second repeat."""
    made = model(8, windows=(None, 3, 3, 3) * 2)
    assert (len(made.stack.pattern), made.stack.repeats) == (4, 2)
    made = replace(made, stack=replace(made.stack, scan=scan))
    [name] = [n for n in tensors(made, HUGGING_FACE) if n.tensor.endswith("5.mlp.up_proj.weight")]
    place = (
        ("decoder/stack/layers/block_1/ffn/up/w", 1)
        if scan
        else ("decoder/stack/layer_1/block_1/ffn/up/w", None)
    )
    assert (name.path, name.layer) == place


def test_norms_of_q_and_k_have_names_where_a_notation_has_them():
    found = {n.tensor: n for n in tensors(model(1, qk_norm=True), HUGGING_FACE)}
    assert found["model.layers.0.self_attn.q_norm.weight"].shape == (6,)
    assert "model.layers.0.self_attn.q_norm.weight" not in {
        n.tensor for n in tensors(model(1), HUGGING_FACE)
    }
    with pytest.raises(UserError, match="normalises q and k; there are no names"):
        tensors(model(1, qk_norm=True), META)


def test_biases_of_q_k_and_v_have_names_where_a_notation_has_them():
    biased = model(1, bias=True)
    found = {n.tensor: n for n in tensors(biased, HUGGING_FACE)}
    assert found["model.layers.0.self_attn.k_proj.bias"].shape == (12,)
    pairs = {n.tensor: n for n in tensors(biased, PAIRS)}["blk.0.attn_q.bias"]
    assert pairs.ours(np.arange(24)).tolist()[0] == [0, 2, 4, 1, 3, 5]  # halves, from pairs
    assert not [n for n in tensors(model(1), HUGGING_FACE) if n.tensor.endswith("bias")]
    with pytest.raises(UserError, match="have biases; there are no names"):
        tensors(biased, META)
    assert sizes(biased).bias and not sizes(model(1)).bias


def test_biases_of_the_output_and_of_the_feed_forward_have_names_too():
    biased = model(1, bias=True, out_bias=True, ffn_bias=True)
    assert sizes(biased).out_bias and sizes(biased).ffn_bias
    for table, names in (
        (HUGGING_FACE, ("self_attn.o_proj", "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj")),
        (PAIRS, ("attn_output", "ffn_gate", "ffn_up", "ffn_down")),
    ):
        found = {n.tensor: n.shape for n in tensors(biased, table) if n.tensor.endswith("bias")}
        shapes = [next(v for k, v in found.items() if name in k) for name in names]
        assert shapes == [(12,), (10,), (10,), (12,)] and len(found) == 7
    with pytest.raises(UserError, match="the feed-forward of the model has biases"):
        tensors(model(1, ffn_bias=True), META)
