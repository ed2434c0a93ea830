"""Heads: shapes, letters of their weights, and that a parameter exists only if it was used."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from llama_jax.errors import UserError
from llama_jax.models.heads import AlignHead, LabelHead, MaskedHead, PairHead, TiedHead

KEY = jax.random.key(0)


def letters(variables):
    """Parameter path -> letters."""
    from llama_jax.layers.linear import Lettered

    leaves = jax.tree_util.tree_leaves_with_path(
        variables["params"], is_leaf=lambda leaf: isinstance(leaf, Lettered)
    )
    return {"/".join(k.key for k in path): leaf.letters for path, leaf in leaves}


def test_masked_head_has_bert_parameters():
    x_BAD, table_VD = jnp.ones((2, 3, 8)), jnp.ones((11, 8))
    head = MaskedHead().build()
    variables = head.init(KEY, x_BAD, table_VD)
    assert letters(variables) == {
        "bias": "V",
        "dense/b": "F",
        "dense/w": "DF",
        "norm/bias": "F",
        "norm/scale": "F",
    }
    logits = head.apply(variables, x_BAD.astype(jnp.bfloat16), table_VD)
    assert logits.shape == (2, 3, 11)
    assert logits.dtype == jnp.float32


def test_tied_head_is_the_table():
    table_VD = jnp.arange(6.0).reshape(3, 2)
    logits, variables = (
        TiedHead().build().init_with_output(KEY, jnp.array([[[1.0, 2.0]]]), table_VD)
    )
    np.testing.assert_array_equal(logits, [[[2.0, 8.0, 14.0]]])
    assert not variables


@pytest.mark.parametrize(("head", "labels"), [(PairHead(), 2), (LabelHead(5), 5)])
def test_label_heads_pool_then_classify(head, labels):
    logits, variables = head.build().init_with_output(KEY, jnp.ones((4, 8), jnp.bfloat16))
    assert logits.shape == (4, labels)
    assert logits.dtype == jnp.float32
    assert letters(variables) == {"out/b": "A", "out/w": "FA", "pool/b": "F", "pool/w": "DF"}


def test_align_head_creates_only_what_was_used():
    head = AlignHead(width=4).build()

    def text_only(module, x):
        return module("text", x)

    def softmax(module, x):
        return module("text", x), module("image", x), module.scale()

    x_BD = jax.random.normal(KEY, (3, 8))
    assert letters(nn.init(text_only, head)(KEY, x_BD)) == {"to_text/w": "DA"}
    assert set(letters(nn.init(softmax, head)(KEY, x_BD))) == {
        "to_text/w",
        "to_image/w",
        "tau/value",
    }
    assert set(letters(nn.init(lambda m: m.bias(), head)(KEY))) == {"shift/value"}


def test_align_head_gives_unit_vectors_and_survives_zero():
    head = AlignHead(width=4).build()
    x_BD = jax.random.normal(KEY, (3, 8)).at[1].set(0)
    variables = head.init(KEY, "image", x_BD)
    z_BA = head.apply(variables, "image", x_BD)
    np.testing.assert_allclose(jnp.linalg.norm(z_BA, axis=-1), [1, 0, 1], atol=1e-6)
    grad = jax.grad(lambda x: jnp.sum(head.apply(variables, "image", x)))(x_BD)
    assert jnp.all(jnp.isfinite(grad))


def test_scale_starts_at_one_over_temperature_and_stops_at_100():
    head = AlignHead().build()
    variables = nn.init(lambda m: m.scale(), head)(KEY)
    scale = nn.apply(lambda m: m.scale(), head)
    assert scale(variables) == pytest.approx(1 / 0.07, rel=1e-6)
    far = jax.tree.map(lambda _: jnp.float32(9.0), variables)
    assert scale(far) == pytest.approx(100, rel=1e-5)
    # The gradient still flows, so that tau can come back below the cap.
    assert jax.tree.leaves(jax.grad(scale)(far))[0] == pytest.approx(100, rel=1e-5)


def test_mistakes_are_explained():
    with pytest.raises(UserError, match="imag.*Did you mean 'image'"):
        AlignHead().build().init(KEY, "imag", jnp.ones((1, 4)))
    with pytest.raises(UserError, match="Did you mean 'gelu'"):
        MaskedHead(activation="gleu")
    with pytest.raises(UserError, match="at least 2"):
        LabelHead(labels=1)
