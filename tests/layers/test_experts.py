"""Experts: the sorted dispatch is the dense definition, on a mesh too, and drops no token."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from llama_jax import axes
from llama_jax.errors import UserError
from llama_jax.kernels.experts import ragged, reference
from llama_jax.kernels.experts.api import experts
from llama_jax.layers.block import Block
from llama_jax.layers.experts import Experts
from llama_jax.layers.mlp import SwiGLU
from llama_jax.layers.stack import Stack
from llama_jax.models.decoder import Decoder
from llama_jax.objectives import CausalLM, Sown, losses
from llama_jax.objectives.base import applied
from llama_jax.train.flops import counted
from tests.models.small import D, V, attention, ids, start

# float32, values of order 1; sums in other orders.
TOLERANCE = 1e-5
T, E, F = 12, 5, 6
RNG = np.random.default_rng(0)
X = RNG.normal(size=(T, D)).astype(np.float32)
SHARE = RNG.uniform(0.1, 1, size=(T, 2)).astype(np.float32)
WEIGHTS = [
    RNG.normal(size=shape, scale=D**-0.5).astype(np.float32)
    for shape in [(E, D, F), (E, D, F), (E, F, D)]
]
ONE = jnp.zeros((T, 1), int)
CHOICES = {
    "all experts": [[t % E, (t + 2) % E] for t in range(T)],
    "some without a token": [[1, 3]] * T,
    "one expert and others elsewhere": [[4, E + 7]] * T,
    "none here": [[-2, E]] * T,
}


def near(a, b):
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=TOLERANCE), a, b)


@pytest.mark.parametrize("choice", CHOICES)
def test_tokens_in_the_order_of_their_experts_give_what_all_experts_give(choice):
    chosen = jnp.array(CHOICES[choice])

    def both(run):
        def loss(x, share, *weights):
            return jnp.sum(jnp.sin(run(x, chosen, share, *weights, jax.nn.silu)))

        y = run(X, chosen, SHARE, *WEIGHTS, jax.nn.silu)
        return y, jax.grad(loss, range(5))(X, SHARE, *WEIGHTS)

    found = both(ragged.experts)
    near(found, both(reference.experts))
    assert (np.abs(found[0]).max() > 0) == (choice != "none here")


def test_the_definition_is_a_sum_over_a_tokens_experts_of_what_its_share_gives():
    chosen = jnp.array(CHOICES["all experts"])
    found = reference.experts(X, chosen, SHARE, *WEIGHTS, jax.nn.silu)
    for t in range(T):
        expected = np.zeros(D)
        for c in range(2):
            gate, up, down = (w[int(chosen[t, c])] for w in WEIGHTS)
            x = SHARE[t, c] * X[t]
            expected += (jax.nn.silu(x @ gate) * (x @ up)) @ down
        np.testing.assert_allclose(found[t], expected, atol=TOLERANCE)


def test_a_token_costs_the_products_of_its_experts_alone():
    def work(top_k):
        chosen = jnp.zeros((T, top_k), int)
        return counted(
            lambda x, *w: ragged.experts(x, chosen, jnp.ones((T, top_k)), *w, jax.nn.silu),
            *(X, *WEIGHTS),
        )

    assert work(1) == 3 * 2 * T * D * F
    assert work(3) == 3 * work(1)
    x, share = jnp.array(X), jnp.array(SHARE[:, :1])
    run = jax.value_and_grad(lambda w: jnp.sum(ragged.experts(x, ONE, share, *w, jax.nn.silu)))
    # Backward a product with the weights and one with the vectors, but for x, of which nobody asks.
    assert counted(run, WEIGHTS) == (3 + 3 + 1) * 2 * T * D * F


def test_more_choices_than_experts_are_refused():
    with pytest.raises(UserError, match="top_k=3 of experts=2"):
        Experts(F, experts=2, top_k=3)


OWN = attention(causal=True)
ROUTED = Experts(8, experts=4, top_k=2, shared=SwiGLU(8))
MODEL = Decoder(V, D, Stack((Block(OWN, SwiGLU(24)), Block(OWN, ROUTED)), repeats=2))
OBJECTIVES = {
    "lm": CausalLM("text"),
    "balance": Sown("text", 0.1, "balance"),
    "z": Sown("text", 0.1, "router_z"),
}
ROWS = {"tokens": ids(8, 6), "targets": ids(8, 6, 1), "loss_weights": np.ones((8, 6))}


def parameters():
    return start(lambda m, x: m(x), MODEL.build(), ids(8, 6))[0]["params"]


def trained(params):
    """The losses of a batch, and the gradient of their sum."""
    run = applied(losses(OBJECTIVES), MODEL.build())
    key = jax.random.key(0)
    call = jax.jit(jax.value_and_grad(lambda p: run(p, key, {"text": ROWS}, key), has_aux=True))
    (total, found), grads = call(params)
    return total, {name: loss.sum / loss.count for name, loss in found.items()}, grads


def test_the_letters_of_experts_are_their_own_axis():
    made = jax.eval_shape(lambda: MODEL.build().init(jax.random.key(0), ids()))["params"]
    ffn = made["decoder"]["stack"]["layers"]["block_1"]["ffn"]
    assert {name: ffn[name]["w"].letters for name in ("router", "gate", "up", "down")} == {
        "router": "LDE",
        "gate": "LEDF",
        "up": "LEDF",
        "down": "LEFD",
    }
    assert ffn["shared"]["down"]["w"].letters == "LFD"


def test_an_even_choice_has_a_balance_of_1_and_a_single_one_of_all_experts():
    params = {"params": parameters()}

    def sown(router):
        own = jax.tree.map(lambda w: w[0], params["params"]["decoder"]["stack"]["layers"])
        own = own["block_1"]["ffn"] | {"router": {"w": router}}
        one = dataclasses.replace(ROUTED, top_k=1).build()
        x = jnp.broadcast_to(jnp.eye(4, D)[None], (2, 4, D))
        _, out = nn.apply(lambda m, x: m(x), one, mutable=["losses", "intermediates"])(
            {"params": own}, x
        )
        return out["losses"]["balance"][0], out["intermediates"]["load"][0]

    balance, load = sown(100 * jnp.eye(D, 4))
    np.testing.assert_allclose(balance, 1, atol=TOLERANCE)
    np.testing.assert_allclose(load, [0.25] * 4)
    balance, load = sown(jnp.zeros((D, 4)).at[:, 2].set(100))
    np.testing.assert_allclose(balance, 4, atol=TOLERANCE)
    np.testing.assert_allclose(load, [0, 0, 1, 0])


MESHES = {
    "experts": {"expert": 4},
    "rows too": {"data": 2, "expert": 2},
    "all": {"fsdp": 2, "expert": 2, "tensor": 2},
    "stages": {"stage": 2, "expert": 2, "data": 1},
}


@pytest.mark.meshes
@pytest.mark.parametrize("name", MESHES)
def test_experts_over_a_mesh_train_as_on_one_device(mesh, name):
    params = parameters()
    total, found, grads = trained(params)
    assert found["balance"] > 0.9 and found["z"] > 0
    with axes.using(mesh(int(np.prod(list(MESHES[name].values()))), **MESHES[name])):
        there, found_there, grads_there = jax.device_get(trained(params))
    if name == "stages":  # a micro-batch has its own balance
        assert abs(there - total) < 0.1
        return
    near((there, found_there), (total, found))
    near(grads_there, grads)


@pytest.mark.meshes
def test_the_products_of_experts_over_a_mesh_are_counted_as_on_one_device(mesh):
    def work():
        chosen, share = jnp.zeros((4, T, 1), int), jnp.ones((4, T, 1))
        weights = [jnp.zeros((4, *w.shape[1:])) for w in WEIGHTS]
        return counted(
            lambda x: experts(x, chosen, share, *weights, jax.nn.silu), jnp.zeros((4, T, D))
        )

    alone = work()
    with axes.using(mesh(4, expert=4, data=1)):
        assert work() == alone == 4 * 3 * 2 * T * D * F


@pytest.mark.meshes
def test_experts_that_the_mesh_does_not_divide_are_named(mesh):
    with axes.using(mesh(8, expert=8)), pytest.raises(UserError, match=r"E \(experts\) of length"):
        trained(parameters())
