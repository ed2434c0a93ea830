"""Frozen weights have no gradient, no moments and no step."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from llama_jax.layers.linear import Lettered
from llama_jax.optim.optimizer import Adafactor, AdamW, Constant, Lion, Muon
from llama_jax.train.flops import counted
from tests.train import tiny

GROUPS = (("up/*", 0.0), ("embed/*", 0.0))
FROZEN = ("up", "embed")


def boxed():
    return {
        "up": {"w": Lettered(jnp.full((4, 6), 0.5), "DF"), "b": Lettered(jnp.ones(6), "F")},
        "down": {"w": Lettered(jnp.full((6, 4), 0.5), "FD")},
        "embed": {"w": Lettered(jnp.ones((8, 4)), "VD")},
    }


@pytest.mark.parametrize(
    "optimizer",
    [AdamW(), AdamW(mu_dtype="bfloat16"), Adafactor(factor_from=4), Lion(), Muon()],
    ids=lambda o: type(o).__name__,
)
def test_the_others_move_as_they_would_alone(optimizer):
    frozen = dataclasses.replace(optimizer, groups=GROUPS, schedule=Constant())
    plain = dataclasses.replace(frozen, groups=())
    alone = {"down": boxed()["down"]}
    found = []
    for one, tree in ((frozen, boxed()), (plain, alone)):
        params = nn.meta.unbox(tree)
        transform = one.build(10, tree)
        state = transform.init(params)
        updates, state = transform.update(jax.tree.map(jnp.ones_like, params), state, params)
        found.append((updates, state))
    (updates, state), (wanted, small) = found
    np.testing.assert_array_equal(updates["down"]["w"], wanted["down"]["w"])
    assert all(not np.any(leaf) for name in FROZEN for leaf in jax.tree.leaves(updates[name]))
    sizes = [sum(leaf.size for leaf in jax.tree.leaves(s)) for s in (state, small)]
    assert sizes[0] == sizes[1]


@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_step_leaves_them_to_the_bit_and_computes_no_gradient_of_them(accumulate):
    def training(groups):
        optimizer = AdamW(rate=1e-2, schedule=Constant(), groups=groups)
        return tiny.Training(tiny.make_mesh(devices=jax.devices()[:1]), (), accumulate, optimizer)

    part = training((("embed/*", 0.0), ("up/*", 0.0)))
    state = part.init()
    before = tiny.bits(state.params["up"]) + tiny.bits(state.params["embed"])
    down = tiny.bits(state.params["down"])
    batch = tiny.batch_of(0)
    work = counted(part.train_step, state, batch)
    new, metrics = part.step(state, batch)
    assert tiny.bits(new.params["up"]) + tiny.bits(new.params["embed"]) == before
    assert tiny.bits(new.params["down"]) != down and float(metrics["grad_norm"]) > 0
    whole = training(())
    assert work < counted(whole.train_step, whole.init(), batch)
