"""Layers in a loop over stacked arrays, or one by one with arrays of their own: one function."""

from dataclasses import replace
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from llama_jax.layers.attention import Attention
from llama_jax.layers.block import Block
from llama_jax.layers.mlp import SwiGLU
from llama_jax.layers.positions import RelativeBias
from llama_jax.layers.stack import Stack
from llama_jax.models.decoder import Decoder

STACKED = Decoder(
    61, 16, Stack((Block(Attention(4, 2, 4, causal=True), SwiGLU(24)),) * 2, repeats=3)
)
SINGLE = replace(STACKED, stack=replace(STACKED.stack, scan=False))
IDS = jnp.arange(10).reshape(2, 5)
# Logits of order 1 in float32, as everywhere: one program is a loop and the other is not.
TOLERANCE = 1e-5


def init(model):
    return jax.jit(lambda: model.init(jax.random.key(0), IDS, method="decode"))()["params"]


def decoder(model):
    """`decode` of a module, compiled."""
    return jax.jit(partial(model.apply, method="decode"))


def unstacked(params):
    params = jax.tree.map(lambda box: box.value, params, is_leaf=lambda x: hasattr(x, "letters"))
    stack = params["decoder"]["stack"]["layers"]
    single = {f"layer_{i}": jax.tree.map(lambda a, i=i: a[i], stack) for i in range(3)}
    return {"decoder": params["decoder"] | {"stack": single}}


def test_single_layers_are_the_stacked_ones():
    stacked, single = STACKED.build(), SINGLE.build()
    params = init(stacked)
    expected, _ = decoder(stacked)({"params": params}, IDS)
    found, _ = decoder(single)({"params": unstacked(params)}, IDS)
    np.testing.assert_allclose(found, expected, atol=TOLERANCE)
    shapes = jax.eval_shape(lambda: single.init(jax.random.key(0), IDS, method="decode"))
    shapes = jax.tree.map(lambda a: a.shape, unboxed(shapes["params"]))
    assert shapes == jax.tree.map(lambda a: a.shape, unstacked(params))


def unboxed(tree):
    return jax.tree.map(lambda box: box.value, tree, is_leaf=lambda x: hasattr(x, "letters"))


def test_single_layers_decode_with_a_cache():
    stacked, single = STACKED.build(), SINGLE.build()
    params = init(stacked)
    expected, _ = decoder(stacked)({"params": params}, IDS)
    cache = SINGLE.empty_cache(2, 8)
    variables = {"params": unstacked(params)}
    decode = decoder(single)
    first, cache = decode(variables, IDS[:, :3], cache=cache)
    then, cache = decode(variables, IDS[:, 3:], cache=cache)
    found = np.concatenate([first, then], axis=1)
    np.testing.assert_allclose(found, expected, atol=TOLERANCE)
    assert len(cache.layers) == 6 and int(cache.index) == 5


@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_a_body_that_is_traced_once_makes_the_program_and_keys_of_one_traced_twice(
    dropout, monkeypatch
):
    model = Decoder(61, 16, Stack((replace(STACKED.stack.pattern[0], dropout=dropout),), 2)).build()

    def programs():
        init = jax.jit(lambda key: model.init(key, IDS, method="decode"))

        @jax.grad
        def gradient(params, key):
            rngs = {"dropout": key}
            return jnp.sum(model.apply(params, IDS, method="decode", rngs=rngs)[0])

        key = jax.random.key(0)
        boxed = jax.eval_shape(init, key)
        return init.lower(key).as_text(), jax.jit(gradient).lower(boxed, key).as_text()

    once, scan = programs(), nn.scan
    twice = lambda *args, check_constancy_invariants, **more: scan(*args, **more)  # noqa: E731
    monkeypatch.setattr(nn, "scan", twice)
    assert once == programs()


BIASED = replace(
    STACKED,
    stack=Stack(
        (Block(Attention(4, 2, 4, rope=None, causal=True), SwiGLU(24)),),
        bias=RelativeBias(4, buckets=8, distance=8, causal=True),
    ),
)


def test_a_relative_bias_is_that_of_each_document_of_a_packed_row():
    model = BIASED.build()
    params, decode = {"params": unboxed(init(model))}, decoder(model)
    # The first row is two documents, the second one.
    segments = jnp.array([[0, 0, 1, 1, 1], [0, 0, 0, 0, 0]])
    positions = jnp.array([[0, 1, 0, 1, 2], [0, 1, 2, 3, 4]])
    places = {"positions_BT": positions, "segments_BT": segments}
    packed, _ = decode(params, IDS, **places)
    for row, start, end in ((0, 0, 2), (0, 2, 5), (1, 0, 5)):
        alone, _ = decode(params, IDS[row : row + 1, start:end])
        np.testing.assert_allclose(packed[row, start:end], alone[0], atol=TOLERANCE)


def test_a_relative_bias_does_not_see_the_padding_before_a_prompt():
    model = BIASED.build()
    params, decode = {"params": unboxed(init(model))}, decoder(model)
    expected, _ = decode(params, IDS)
    padded = jnp.pad(IDS, ((0, 0), (2, 0)))
    valid = jnp.arange(7) >= 2
    for cut in (7, 4):  # in one piece, and the rest with what is in the cache
        cache, found = BIASED.empty_cache(2, 9), []
        for part in (slice(0, cut), slice(cut, 7)):
            ids, real = padded[:, part], jnp.broadcast_to(valid[part], padded[:, part].shape)
            if ids.shape[1]:
                places = {
                    "positions_BT": jnp.maximum(jnp.arange(7) - 2, 0)[None, part].repeat(2, 0)
                }
                logits, cache = decode(params, ids, cache=cache, valid_BT=real, **places)
                found.append(logits)
        np.testing.assert_allclose(np.concatenate(found, 1)[:, 2:], expected, atol=TOLERANCE)
