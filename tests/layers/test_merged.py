"""`Merged`: two calls of attention joined by their lse are one softmax over all keys."""

from dataclasses import replace

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from llama_jax.kernels import Mask
from llama_jax.kernels.attention import api
from llama_jax.kernels.backends import recording
from llama_jax.kernels.target import interpreted
from llama_jax.layers.attention import AttentionModule
from llama_jax.layers.block import Block, Merged
from llama_jax.layers.inputs import Inputs, Memory
from llama_jax.models.tokens import text_positions
from tests.kernels.attention.suite import TOLERANCE
from tests.models.small import D, attention, start

B, T, S = 3, 20, 7
RNG = np.random.default_rng(0)
X, OTHERS = (jnp.asarray(RNG.normal(size=(B, n, D)), jnp.float32) for n in (T, S))
# A row without the left of the text; one without a memory; one that sees nothing at all.
INPUTS = Inputs(text_positions(B, T), jnp.arange(T)[None] >= jnp.array([[6], [0], [T]]))
MEMORY = Memory(OTHERS, jnp.broadcast_to(jnp.array([[True], [False], [False]]), (B, S)))
CASES = {
    "causal": (attention(causal=True), MEMORY),
    "window": (attention(causal=True, window=4), MEMORY),
    "both ways": (attention(), MEMORY),
    "a bounded view": (
        attention(causal=True),
        replace(MEMORY, allow=jnp.asarray(RNG.random((B, T, S)) < 0.5)),
    ),
    "streams": (attention(causal=True), replace(MEMORY, parts=(3, 4))),
}


def joined(call, args, kwargs, context):
    """The slow twin: all keys in one call, under one mask written out."""
    if not isinstance(context.module, AttentionModule) or context.method_name != "__call__":
        return call(*args, **kwargs)
    x, kv, mask, positions, bias, (other, seen) = args
    keys = jax.tree.map(lambda a, b: jnp.concatenate([a, b], axis=1), kv, other)
    parts = [jnp.broadcast_to(m.dense(T, n), (B, T, n)) for m, n in ((mask, T), (seen, S))]
    return call(x, keys, Mask(allow=jnp.concatenate(parts, axis=2)), positions, bias)


def run(block, x, others, memory):
    return block(x, None, INPUTS, replace(memory, x=others))[0]


def both(block, memory):
    """The result, and the gradients of the weights, of the text and of the memory."""
    variables, apply = start(run, block, X, OTHERS, memory)

    def total(*args):
        out = apply(*args, memory)
        return jnp.sum(jnp.sin(out)), out

    return jax.grad(total, (0, 1, 2), has_aux=True)(variables, X, OTHERS)


def agree(found, expected):
    for x, wanted in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        scale = max(np.abs(wanted).max(), 1e-3)
        np.testing.assert_allclose(x, wanted, rtol=0, atol=TOLERANCE["float32"] * scale)


@pytest.mark.parametrize("name", CASES)
def test_it_is_the_softmax_over_the_joined_keys_and_so_are_its_gradients(name):
    own, memory = CASES[name]
    block = Block(own, None, cross=Merged()).build()
    found = both(block, memory)
    with nn.intercept_methods(joined):
        agree(found, both(block, memory))


def test_a_flash_kernel_takes_both_halves_of_it(monkeypatch):
    monkeypatch.setattr(api, "DENSE_SCORES", 1)
    block = Block(attention(causal=True), None, cross=Merged()).build()
    with interpreted(), recording() as receipts:
        found = both(block, MEMORY)
    assert {receipt.backend for receipt in receipts} == {"pallas_gpu"}
    assert sum(receipts.values()) % 2 == 0
    with nn.intercept_methods(joined):
        agree(found, both(block, MEMORY))
