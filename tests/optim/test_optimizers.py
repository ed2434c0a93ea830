"""Every optimizer: optax's numbers, state split as the weights are, groups, and its names."""

import dataclasses
import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import optax.contrib
import pytest
from jax.sharding import PartitionSpec as P

from llama_jax.axes import FSDP_TENSOR, make_mesh
from llama_jax.config import edit, from_json, to_json
from llama_jax.errors import UserError
from llama_jax.layers.linear import Lettered
from llama_jax.optim.optimizer import (
    SGD,
    WSD,
    Adafactor,
    AdamW,
    Constant,
    Cosine,
    Group,
    Linear,
    Lion,
    Muon,
)
from llama_jax.optim.parameters import hidden, sides
from llama_jax.train.checkpoint import Checkpoints
from llama_jax.train.state import plan
from tests.train.tiny import Training, batch_of, bits, text_run

SHAPES = {
    "q": ((6, 4, 2), "DNH"),
    "o": ((4, 2, 6), "NHD"),
    "up": ((6, 10), "DF"),
    "embed": ((12, 6), "VD"),
    "scale": ((6,), "D"),
}
LAYERS = 3
KINDS = {
    "adamw": AdamW(),
    "adafactor": Adafactor(factor_from=4),
    "lion": Lion(weight_decay=0.1),
    "muon": Muon(),
    "sgd": SGD(nesterov=True),
}
# What a user of optax would write for the plain matrices; rates are 1 and clipping is off.
MATRIX = optax.contrib.MuonDimensionNumbers(0, 1)
PLAIN = {
    "adamw": lambda: optax.adamw(1.0, b2=0.95, weight_decay=0.1),
    "adafactor": lambda: optax.adafactor(1.0, min_dim_size_to_factor=4),
    "lion": lambda: optax.lion(1.0, b2=0.99, weight_decay=0.1),
    "muon": lambda: optax.contrib.muon(
        1.0, weight_decay=0.1, adam_b2=0.95, consistent_rms=0.2, adam_weight_decay=0.1,
        muon_weight_dimension_numbers={"q": MATRIX, "o": MATRIX, "up": MATRIX, "embed": None},
    ),
    "sgd": lambda: optax.sgd(1.0, momentum=0.9, nesterov=True),
}  # fmt: skip
# float32 steps of order 1; Muon's five products of matrices in another order.
TOLERANCE = 2e-6


def flat(name, x):
    """A weight as the matrix that its letters mean."""
    split = {"q": 1, "o": 2}.get(name)
    return x if split is None else x.reshape(int(np.prod(x.shape[:split])), -1)


@pytest.mark.parametrize("kind", KINDS)
def test_steps_are_optaxs_on_each_layers_matrix(kind):
    optimizer = dataclasses.replace(KINDS[kind], rate=1.0, schedule=Constant(), clip=None)
    names = ["q", "o", "up", "embed"]
    rng = np.random.default_rng(0)

    def numbers(name):
        many = () if name == "embed" else (LAYERS,)
        return jax.device_put(rng.normal(size=many + SHAPES[name][0]).astype(np.float32))

    params = {name: numbers(name) for name in names}
    boxed = {
        name: Lettered(x, ("" if name == "embed" else "L") + SHAPES[name][1])
        for name, x in params.items()
    }
    grads = [{name: numbers(name) for name in names} for _ in range(3)]
    ours = optimizer.build(10, boxed)
    state, found = ours.init(params), params
    for grad in grads:
        updates, state = ours.update(grad, state, found)
        found = optax.apply_updates(found, updates)

    theirs = PLAIN[kind]()
    for layer in range(LAYERS):

        def one(tree, layer=layer):
            return {n: flat(n, x if n == "embed" else x[layer]) for n, x in tree.items()}

        expected, plain = one(params), theirs.init(one(params))
        for grad in grads:
            updates, plain = theirs.update(one(grad), plain, expected)
            expected = optax.apply_updates(expected, updates)
        jax.tree.map(
            functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=TOLERANCE),
            one(found),
            expected,
        )


class Heads(nn.Module):
    """One weight of each kind, in layers."""

    @nn.compact
    def __call__(self):
        for name, (shape, letters) in SHAPES.items():
            many = () if name == "embed" else (LAYERS,)
            letters = "L" * len(many) + letters
            self.param(name, lambda _, s=many + shape, x=letters: Lettered(jnp.ones(s), x))


@pytest.mark.parametrize("kind", KINDS)
def test_the_state_is_split_as_the_weights_are(kind):
    mesh = make_mesh(fsdp=2, tensor=2, devices=jax.devices()[:4])
    layout = plan(
        lambda key: Heads().init(key)["params"], KINDS[kind], 10, mesh, FSDP_TENSOR, ema=True
    )
    leaves = jax.tree_util.tree_leaves_with_path((layout.abstract.opt_state, layout.abstract.ema))
    own = {name: (leaf.shape, leaf.sharding.spec) for name, leaf in layout.abstract.params.items()}
    seen = set()
    for path, leaf in leaves:
        name = next((n for n in own if f"'{n}'" in jax.tree_util.keystr(path)), None)
        if name and leaf.shape == own[name][0]:
            assert leaf.sharding.spec == own[name][1]
            seen.add(name)
    assert seen == set(SHAPES)
    state = layout.init(0)  # the arrays can be made so
    assert jax.tree.map(lambda x: x.sharding, state) == layout.shardings
    if kind == "adafactor":
        # Of [L,D,NxH] the rows D and the columns N x H.
        moments = layout.abstract.opt_state[1]["q"]
        assert (moments.v_row.shape, moments.v_col.shape) == ((3, 6), (3, 8))
        assert moments.v_row.sharding.spec == P("stage", "fsdp")
        assert moments.v_col.sharding.spec == P("stage", "tensor")
        moments = layout.abstract.opt_state[1]["o"]  # the shorter side comes first
        assert moments.v_row.sharding.spec == P("stage", "fsdp")


@pytest.mark.parametrize(
    ("letters", "expected", "muon"),
    [
        ("DF", ((0,), (1,)), True),
        ("LDNH", ((1,), (2, 3)), True),
        ("LNHD", ((1, 2), (3,)), True),
        ("LEDF", ((2,), (3,)), True),
        ("DE", ((0,), (1,)), False),  # a router's outputs are labels
        ("VD", ((0,), (1,)), False),
        ("AD", ((0,), (1,)), False),
        ("LD", ((1,),), False),
        ("", (), False),
    ],
)
def test_letters_say_what_a_matrix_is(letters, expected, muon):
    assert sides(letters) == expected
    assert hidden("w", letters) == muon


def test_every_optimizer_learns_and_goes_on_from_a_checkpoint_bit_for_bit(tmp_path):
    for kind, optimizer in KINDS.items():
        optimizer = dataclasses.replace(optimizer, rate=1e-2, schedule=Constant())
        tiny = Training(make_mesh(devices=jax.devices()[:1]), optimizer=optimizer, ema=0.9)
        checkpoints = Checkpoints(tmp_path / kind)
        state, found = tiny.init(), []
        for step in range(12):
            if step == 6:
                checkpoints.save(6, state, {"loader": 6}, tiny.plan.letters)
                checkpoints.finish()
            state, metrics = tiny.step(state, batch_of(step % 2))
            found.append(float(metrics["loss"]))
        assert found[-1] < found[0], kind
        again, _ = checkpoints.restore(tiny.plan.abstract)
        for step in range(6, 12):
            again, _ = tiny.step(again, batch_of(step % 2))
        assert bits(again) == bits(state), kind


def test_groups_multiply_the_rate_and_the_first_that_takes_a_weight_decides():
    boxed = {
        "text": {"w": Lettered(jnp.ones((2, 3)), "DF"), "scale": Lettered(jnp.ones(2), "D")},
        "embed": {"w": Lettered(jnp.ones((4, 2)), "VD")},
        "out": {"w": Lettered(jnp.ones((2, 3)), "DF")},
    }
    params = nn.meta.unbox(boxed)
    groups = (("text/scale", 0.0), ("text/*", 0.1), Group(rate=0.5, letters="V"))
    optimizer = SGD(rate=1.0, schedule=Constant(), clip=None, groups=groups)
    assert optimizer.groups[1] == Group("text/*", 0.1)
    transform = optimizer.build(10, boxed)
    updates, _ = transform.update(params, transform.init(params), params)
    moved = jax.tree.map(lambda u: round(-float(u.reshape(-1)[0]), 6), updates)
    expected = {"text": {"w": 0.1, "scale": 0.0}, "embed": {"w": 0.5}, "out": {"w": 1.0}}
    assert moved == expected
    with pytest.raises(UserError, match=r"'txt/\*' takes no parameter.*Did you mean 'text/\*'"):
        SGD(groups=(("txt/*", 0.1),)).build(10, boxed)
    with pytest.raises(UserError, match="with letters 'E' takes no parameter"):
        SGD(groups=(Group(letters="E"),)).build(10, boxed)
    with pytest.raises(UserError, match="rate=-1; give 0"):
        Group("*", -1)


def test_a_line_falls_to_its_floor():
    schedule = Linear(warmup=2, floor=0.5).build(1.0, 12)
    found = [float(schedule(step)) for step in (0, 1, 2, 7, 12)]
    np.testing.assert_allclose(found, [0.5, 1, 1, 0.75, 0.5], rtol=1e-6)


def test_names_stand_for_optimizers_and_schedules(text):
    run = edit(text_run(text), "optimizer", AdamW(schedule=Cosine(warmup=7), clip=2.0))
    run = edit(run, "optimizer", "muon")
    assert run.optimizer == Muon(schedule=Cosine(warmup=7), clip=2.0)
    run = edit(run, "optimizer.schedule", "wsd")
    assert run.optimizer.schedule == WSD(warmup=7, floor=0.1)
    assert from_json(to_json(run)) == run
    with pytest.raises(UserError, match="unknown optimizer 'muom'; expected adamw.*'muon'"):
        edit(run, "optimizer", "muom")
    with pytest.raises(UserError, match="unknown schedule 'cosin'.*Did you mean 'cosine'"):
        edit(run, "optimizer.schedule", "cosin")
    with pytest.raises(UserError, match=r"clip=0\.0: give more than 0"):
        edit(run, "optimizer.clip", 0)


def test_a_run_json_from_before_the_schedules_moved_can_be_read(text):
    run = text_run(text, optimizer=AdamW(schedule=Cosine()))
    old = to_json(run).replace("llama_jax.optim:Cosine", "llama_jax.train.optimizer:Cosine")
    assert old != to_json(run) and from_json(old) == run
