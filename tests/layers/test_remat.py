"""What the backward pass computes again changes its memory and neither losses nor gradients."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from llama_jax import presets
from llama_jax.config import edit
from llama_jax.errors import UserError
from llama_jax.layers.attention import Attention
from llama_jax.layers.block import Block
from llama_jax.layers.mlp import SwiGLU
from llama_jax.layers.stack import Stack, with_remat
from llama_jax.models.decoder import Decoder
from tests.shapes import shapes

# Equal programs but for their order; float32 gradients of order 0.1.
TOLERANCE = 1e-6
STACK = Stack((Block(Attention(4, 2, 8, causal=True), SwiGLU(96)),), repeats=4)
# From the most memory to the least.
WAYS = [
    ("none", ()),
    ("dots", ()),
    ("named", ("attention", "hidden")),
    ("named", ("attention",)),
    ("block", ()),
]
# On a CPU there is nowhere to go, so what is offloaded takes what "named" takes.
AWAY = [("input",), ("input", "q", "k", "v", "attention"), ("q", "hidden")]
IDS = jnp.arange(4 * 64).reshape(4, 64) % 61


def built(stack):
    """(model, parameters)."""
    model = Decoder(61, 32, stack).build()
    made = shapes(lambda: model.init(jax.random.key(0), IDS[:1, :8], method="decode"))
    rng = np.random.default_rng(0)
    params = jax.tree.map(
        lambda x: jax.device_put(rng.normal(0.2, 0.1, x.shape).astype(x.dtype)), made
    )
    return model, params


def gradient(stack):
    """(compiled value and gradient, parameters)."""
    model, params = built(stack)

    def loss(params):
        logits, _ = model.apply(params, IDS, method="decode")
        return jnp.mean(jnp.square(jax.nn.logsumexp(logits, -1)))

    return jax.jit(jax.value_and_grad(loss)).lower(params).compile(), params


def test_every_way_gives_one_gradient_and_each_less_memory_than_the_one_before():
    memory, found = [], []
    for remat, saved in WAYS:
        compiled, params = gradient(dataclasses.replace(STACK, remat=remat, saved=saved))
        memory.append(compiled.memory_analysis().temp_size_in_bytes)
        found.append(compiled(params))
    assert memory == sorted(set(memory), reverse=True)
    for loss, grads in found[1:]:
        np.testing.assert_allclose(loss, found[0][0], atol=TOLERANCE)
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, atol=TOLERANCE), grads, found[0][1]
        )


@pytest.mark.parametrize("saved", AWAY)
def test_what_is_offloaded_gives_the_loss_and_the_gradient_of_block(saved):
    block, params = gradient(dataclasses.replace(STACK, remat="block"))
    away, _ = gradient(dataclasses.replace(STACK, remat="offload", saved=saved))
    (loss, grads), (other, others) = block(params), away(params)
    np.testing.assert_allclose(other, loss, atol=TOLERANCE)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=TOLERANCE), others, grads)


def test_an_input_that_is_named_is_stored_once():
    memory = [
        gradient(dataclasses.replace(STACK, remat=remat, saved=("input",)))[0]
        .memory_analysis()
        .temp_size_in_bytes
        for remat in ("block", "named")
    ]
    assert memory[1] == pytest.approx(memory[0], rel=0.05)  # not a second copy of every layer's


def test_layers_one_by_one_can_be_computed_again_too():
    stack = dataclasses.replace(STACK, scan=False, repeats=2)
    whole, params = gradient(stack)
    again, _ = gradient(dataclasses.replace(stack, remat="block"))
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=TOLERANCE), again(params), whole(params)
    )


@pytest.mark.parametrize(("saved", "again"), [("attention", False), ("ffn", True)])
def test_a_flash_kernel_whose_result_is_stored_does_not_run_again(saved, again):
    stack = dataclasses.replace(STACK, remat="named", saved=(saved,))
    model, params = built(stack)
    ids = jnp.zeros((1, 512), jnp.int32)  # long enough for the chunked kernel

    def logits(params):
        return jnp.sum(model.apply(params, ids, method="decode")[0])

    def maxima(f):  # of rows of scores: the forward pass of the kernel, and nothing else here
        return str(jax.make_jaxpr(f)(params)).count("reduce_max")

    assert (maxima(jax.grad(logits)) > maxima(logits) > 0) == again


def test_all_stacks_of_a_model_are_edited_at_once():
    run = presets.get("seed_demo")
    model = with_remat(run.model, "named", ("ffn",))
    stacks = [model.text.stack, model.vision.layers.stack, model.decoder.stack]
    assert all((s.remat, s.saved) == ("named", ("ffn",)) for s in stacks)
    assert with_remat(model, "none").text == run.model.text
    one = edit(run, "model.text.stack.remat", "dots")
    assert one.model.text.stack.remat == "dots" and one.model.decoder.stack.remat == "none"


def test_mistakes_are_named():
    with pytest.raises(
        UserError, match="remat='blok' of Stack is not one of none, .*Did you mean 'block'"
    ):
        dataclasses.replace(STACK, remat="blok")
    with pytest.raises(UserError, match="saved='atention'.*Did you mean 'attention'"):
        edit(presets.get("tiny_decoder"), "model.stack.saved", ("atention",))
