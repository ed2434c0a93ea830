"""Names of tensors, their shapes, and that writing undoes reading."""

import numpy as np
import pytest

from llama_jax.weights.names import GGUF, HUGGING_FACE, META, names

SIZES = {"D": 12, "N": 4, "K": 2, "H": 6, "F": 10, "V": 7}
FORMATS = {"huggingface": HUGGING_FACE, "meta": META, "gguf": GGUF}


@pytest.mark.parametrize("rows", FORMATS.values(), ids=FORMATS)
def test_writing_undoes_reading(rows):
    for name in names(rows, SIZES, layers=2, tied=False):
        tensor = np.random.default_rng(0).normal(size=name.shape)
        np.testing.assert_array_equal(name.theirs(name.ours(tensor)), tensor)


def test_every_format_names_the_same_weights_once():
    found = {
        key: [(n.path, n.layer) for n in names(rows, SIZES, 3, tied=False)]
        for key, rows in FORMATS.items()
    }
    assert sorted(found["huggingface"]) == sorted(found["meta"]) == sorted(found["gguf"])
    assert len(found["meta"]) == len(set(found["meta"])) == 3 * 9 + 3


def test_shapes_are_those_of_the_files():
    shapes = {n.tensor: n.shape for n in names(HUGGING_FACE, SIZES, 1, tied=True)}
    assert shapes["model.layers.0.self_attn.q_proj.weight"] == (24, 12)
    assert shapes["model.layers.0.self_attn.k_proj.weight"] == (12, 12)
    assert shapes["model.layers.0.mlp.down_proj.weight"] == (12, 10)
    assert "lm_head.weight" not in shapes


def test_metas_pairs_lie_side_by_side_and_hugging_faces_in_halves():
    """As in transformers' conversion: view(heads, head_dim / 2, 2, D).transpose(1, 2)."""
    meta = np.arange(24 * 12).reshape(24, 12)
    hugging_face = meta.reshape(4, 3, 2, 12).transpose(0, 2, 1, 3).reshape(24, 12)
    [m] = [n for n in names(META, SIZES, 1, tied=True) if n.path.endswith("attn/q/w")]
    [h] = [n for n in names(HUGGING_FACE, SIZES, 1, tied=True) if n.path.endswith("attn/q/w")]
    np.testing.assert_array_equal(m.ours(meta), h.ours(hugging_face))
