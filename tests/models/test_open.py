"""What a user adds from outside: losses sown, layers looked into, adapters, weights of other types.

Each through the three forms of a stack: a scan, one by one, and the stages of a pipeline.
"""

import contextlib
import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from llama_jax import axes
from llama_jax.errors import UserError
from llama_jax.layers.block import Block
from llama_jax.layers.linear import Einsum, lettered, product
from llama_jax.layers.stack import Stack
from llama_jax.models.decoder import Decoder
from llama_jax.models.language import Language
from llama_jax.models.tokens import Placed
from llama_jax.objectives import CausalLM, Sown, losses
from llama_jax.objectives.base import applied
from tests.models.small import FFN, D, V, attention, ids, start

# float32, values of order 1; sums in other orders.
TOLERANCE = 1e-5
ROWS, T = 4, 6


@dataclasses.dataclass(frozen=True)
class Routed:
    """Experts that all see every token, weighted by a router, whose logits shall stay small."""

    experts: int = 3

    def build(self, name=None):
        return RoutedModule(self, name=name)


class RoutedModule(nn.Module):
    config: Routed

    @nn.compact
    def __call__(self, x_BTD):
        router_BTE = Einsum("BTD,DE->BTE", E=self.config.experts, name="router")(x_BTD)
        self.sow("losses", "router_z", jnp.mean(jax.nn.logsumexp(router_BTE, axis=-1) ** 2))
        h_BTEF = Einsum("BTD,EDF->BTEF", E=self.config.experts, F=8, name="up")(x_BTD)
        y_BTED = Einsum("BTEF,EFD->BTED", D=x_BTD.shape[-1], name="down")(jax.nn.silu(h_BTEF))
        return jnp.einsum("BTED,BTE->BTD", y_BTED, jax.nn.softmax(router_BTE))


OWN = attention(causal=True)
# Two kinds of layer, four layers; only every second has a router.
STACK = Stack((Block(OWN, FFN), Block(OWN, Routed())), repeats=2)
SCANNED = Decoder(V, D, STACK)
SINGLE = dataclasses.replace(SCANNED, stack=dataclasses.replace(STACK, scan=False))
FORMS = ["scan", "one by one", pytest.param("stages", marks=pytest.mark.meshes)]


@pytest.fixture(params=FORMS)
def form(request, mesh):
    """The model, what its parameters are made of the scanned ones, and where it runs."""
    if request.param == "stages":
        return SCANNED.build(), lambda p: p, lambda: axes.using(mesh(2, stage=2, data=1))
    if request.param == "scan":
        return SCANNED.build(), lambda p: p, contextlib.nullcontext
    return SINGLE.build(), one_by_one, contextlib.nullcontext


def one_by_one(params):
    stack = params["decoder"]["stack"]["layers"]
    layers = {f"layer_{i}": jax.tree.map(lambda a, i=i: a[i], stack) for i in range(STACK.repeats)}
    return {"decoder": params["decoder"] | {"stack": layers}}


def parameters():
    return start(lambda m, x: m(x), SCANNED.build(), ids(ROWS, T))[0]["params"]


def outputs(model, params, where, taps=()):
    """What `hidden` gives of the form's model, losses asked for."""

    def hidden(m, x):
        return m.hidden(m.embed(x), taps=taps)

    run = jax.jit(lambda p, x: nn.apply(hidden, model, mutable=["losses"])({"params": p}, x)[0])
    with where():
        return jax.device_get(run(params, ids(ROWS, T)))


def near(a, b):
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=TOLERANCE), a, b)


def test_a_model_starts_and_runs_as_every_flax_module():
    model = SCANNED.build()
    params = model.init(jax.random.key(0), ids(2, 3))["params"]
    assert model.apply({"params": params}, ids(2, 3)).shape == (2, 3, V)
    assert "Total Parameters" in model.tabulate(jax.random.key(0), ids(2, 3))


def test_a_loss_sown_in_a_block_comes_out_with_its_gradient(form):
    model, changed, where = form
    params = parameters()
    found = outputs(model, changed(params), where).aux
    assert set(found) == {"router_z"} and found["router_z"].shape == (2,)
    near(found, outputs(SCANNED.build(), params, contextlib.nullcontext).aux)

    def objective(m, batch, key):
        objectives = {"lm": CausalLM("text"), "z": Sown("text", 0.5, "router_z")}
        return losses(objectives)(m, batch, key)

    def total(params, module, change):
        return applied(objective, module)(change(params), jax.random.key(0), batch, key)[0]

    key = jax.random.key(0)
    rows = {"tokens": ids(ROWS, T), "targets": ids(ROWS, T, 1), "loss_weights": np.ones((ROWS, T))}
    batch = {"text": rows}
    expected = jax.jit(jax.grad(lambda p: total(p, SCANNED.build(), lambda p: p)))(params)
    with where():
        grads = jax.device_get(jax.jit(jax.grad(lambda p: total(p, model, changed)))(params))
    near(grads, expected)


def test_a_sown_loss_is_weighed_in_the_total_and_shown():
    params = parameters()
    rows = {"tokens": ids(ROWS, T), "targets": ids(ROWS, T, 1), "loss_weights": np.ones((ROWS, T))}
    objectives = {"z": Sown("text", 0.5, "router_z"), "lm": CausalLM("text")}
    run = applied(losses(objectives), SCANNED.build())
    total, found = run(params, jax.random.key(0), {"text": rows}, jax.random.key(0))
    aux = outputs(SCANNED.build(), params, contextlib.nullcontext).aux["router_z"]
    assert found["z"].count == 2  # layers with a router
    np.testing.assert_allclose(found["z"].sum, aux.sum(), rtol=TOLERANCE)
    lm = found["lm"].sum / found["lm"].count
    np.testing.assert_allclose(total, lm + 0.5 * aux.mean(), rtol=TOLERANCE)


def test_a_sown_loss_that_nobody_reads_and_one_that_nobody_sows_are_named():
    rows = {"tokens": ids(ROWS, T), "targets": ids(ROWS, T, 1), "loss_weights": np.ones((ROWS, T))}

    def shapes(**objectives):
        run = applied(losses({"lm": CausalLM("text")} | objectives), SCANNED.build())
        args = parameters(), jax.random.key(0), {"text": rows}, jax.random.key(0)
        return jax.eval_shape(run, *args)

    with pytest.raises(UserError, match=r"sow the loss 'router_z' .*Sown\('text', 0.01, 'router_z"):
        shapes()
    with pytest.raises(UserError, match="no layer of the model sows a loss 'router_y'.*router_z"):
        shapes(y=Sown("text", loss="router_y"), z=Sown("text", loss="router_z"))


def test_inner_layers_are_given_by_number(form):
    model, changed, where = form
    params = parameters()
    out = outputs(model, changed(params), where, taps=(3, 0, 2))
    assert [tap.shape for tap in out.taps] == [(ROWS, T, D)] * 3
    # By hand: the residual after a layer is that of a model that ends there.
    for tap, layer in zip(out.taps, (3, 0, 2), strict=True):
        x = SCANNED.build().apply({"params": params}, ids(ROWS, T), method="embed")
        for i in range(layer + 1):
            weights = one_by_one(params)["decoder"]["stack"][f"layer_{i // 2}"][f"block_{i % 2}"]
            y, _ = STACK.pattern[i % 2].build().apply({"params": weights}, x.x, None, x.inputs)
            x = x.with_x(y)
        np.testing.assert_allclose(tap, x.x, atol=TOLERANCE)


def test_a_layer_that_there_is_not_cannot_be_tapped():
    with pytest.raises(UserError, match="there is no layer 4 of 4"):
        outputs(SCANNED.build(), parameters(), contextlib.nullcontext, taps=(4,))


@pytest.mark.parametrize("config", [SCANNED, SINGLE], ids=["scan", "one by one"])
def test_flax_looks_into_the_stack(config):
    params = parameters()
    params = params if config is SCANNED else one_by_one(params)
    run = jax.jit(
        lambda p: config.build().apply({"params": p}, ids(2, 3), capture_intermediates=True)
    )
    seen = run(params)[1]["intermediates"]["decoder"]["stack"]
    if config is SCANNED:
        assert seen["layers"]["block_1"]["ffn"]["router"]["__call__"][0].shape == (2, 2, 3, 3)
    else:
        assert seen["layer_1"]["block_1"]["ffn"]["router"]["__call__"][0].shape == (2, 3, 3)


def test_nothing_is_stored_where_nothing_is_asked():
    model, params = SCANNED.build(), parameters()
    plain = jax.make_jaxpr(lambda p: model.apply({"params": p}, ids(1, 3)))(params)
    scan = next(eqn for eqn in plain.eqns if eqn.primitive.name == "scan")
    # One row, so that no axis but that of the layers is as long as they are many.
    assert all(out.aval.shape[:1] != (scan.params["length"],) for out in scan.outvars)


def lora(rank):
    """Adds x A B to every linear map of a stack; A and B are parameters of the map."""

    def intercept(call, args, kwargs, context):
        y, module = call(*args, **kwargs), context.module
        if not isinstance(module, Einsum) or context.method_name != "__call__":
            return y
        (x,), (operands, out) = args, module.equation.split("->")
        left, right = operands.split(",")
        sizes = dict(zip(left + out, x.shape + y.shape, strict=True))
        inner = "".join(a for a in right if a not in out)
        outer = "".join(a for a in right if a in out)
        normal = nn.initializers.normal(rank**-0.5)
        shapes = [*(sizes[a] for a in inner), rank], [rank, *(sizes[a] for a in outer)]
        a = module.param("lora_a", lettered(normal, inner + "A"), shapes[0])
        b = module.param("lora_b", lettered(nn.initializers.zeros, "A" + outer), shapes[1])
        return y + jnp.einsum(f"{left},{inner}A,A{outer}->{out}", x, a, b)

    return nn.intercept_methods(intercept)


def merged(params, boxes):
    """The weights of the maps with their adapters in them."""
    if not isinstance(params, dict):
        return params
    if "lora_a" in params:
        a, b, w = ((params[name], boxes[name].letters) for name in ("lora_a", "lora_b", "w"))
        return {"w": w[0] + jnp.einsum(f"{a[1]},{b[1]}->{w[1]}", a[0], b[0])}
    return {name: merged(part, boxes[name]) for name, part in params.items()}


def test_low_rank_adapters_are_laid_over_by_interception(form):
    model, changed, where = form
    with lora(2):
        made = jax.eval_shape(lambda: SCANNED.build().init(jax.random.key(0), ids(ROWS, T)))
    boxes, rng = made["params"], np.random.default_rng(0)
    params = jax.tree.map(
        lambda s: jax.device_put(rng.normal(size=s.shape, scale=D**-0.5).astype(s.dtype)),
        nn.meta.unbox(boxes),
    )
    q = params["decoder"]["stack"]["layers"]["block_0"]["attn"]["q"]
    assert q["lora_a"].shape == (2, D, 2)
    with lora(2):
        found = outputs(model, changed(params), where).x
    expected = outputs(SCANNED.build(), merged(params, boxes), contextlib.nullcontext).x
    near(found, expected)


def _with(params, layers):
    return {"decoder": params["decoder"] | {"stack": {"layers": layers}}}


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Int8:
    """A weight in steps of its largest number / 127."""

    q: jax.Array
    step: jax.Array

    @classmethod
    def of(cls, w):
        axes_of_one = tuple(range(1, w.ndim))
        step = jnp.max(jnp.abs(w), axis=axes_of_one, keepdims=True) / 127
        return cls(jnp.round(w / step).astype(jnp.int8), step)

    def product(self, equation, x, **options):
        return product(equation, x, self.q.astype(x.dtype) * self.step.astype(x.dtype), **options)


def test_an_int8_weight_stands_in_the_place_of_a_parameter(form):
    model, changed, where = form
    params = parameters()
    layers = params["decoder"]["stack"]["layers"]
    small = jax.tree.map(lambda w: Int8.of(w) if w.ndim > 2 else w, layers)
    rounded = jax.tree.map(
        lambda w: w.q * w.step if isinstance(w, Int8) else w,
        small,
        is_leaf=lambda w: isinstance(w, Int8),
    )
    found = outputs(model, changed(_with(params, small)), where).x
    expected = outputs(SCANNED.build(), _with(params, rounded), contextlib.nullcontext).x
    near(found, expected)
    assert small["block_0"]["attn"]["q"]["w"].q.dtype == jnp.int8


def test_vectors_stand_in_the_place_of_tokens():
    model, params = SCANNED.build(), parameters()
    table = params["decoder"]["embed"]["w"]
    # The vectors of the last two ids of each row, put where other ids were; one is out of the row.
    given, other = ids(2, T), ids(2, T).at[:, -2:].set(0)
    at = jnp.array([[T - 2, T - 1, -1]] * 2)
    placed = Placed(table[jnp.pad(given[:, -2:], ((0, 0), (0, 1)))], at)

    def logits(m, x, placed):
        return m.head(m.hidden(m.embed(x, placed=placed)).x)

    run = nn.apply(logits, model)
    variables = {"params": params}
    np.testing.assert_array_equal(run(variables, other, placed), run(variables, given, None))


def test_targets_are_scored_as_the_logits_say():
    model, variables = SCANNED.build(), {"params": parameters()}
    found = model.apply(variables, ids(2, T), ids(2, T, 1), method="score")
    logp = jax.nn.log_softmax(model.apply(variables, ids(2, T)))
    expected = np.take_along_axis(np.asarray(logp), np.asarray(ids(2, T, 1))[..., None], -1)[..., 0]
    np.testing.assert_allclose(found, expected, atol=TOLERANCE)


class Halved(Language):
    """A model around another: a door of its own, and all the rest as it was."""

    def setup(self):
        self.decoder = self.config.part()

    def head(self, x, formed=True):
        logits = super().head(x, formed)
        return logits / 2 if formed else dataclasses.replace(logits, x=logits.x / 2)


def test_what_wraps_a_model_has_everything_that_is_made_of_its_door():
    model, variables, x = Halved(SCANNED), {"params": parameters()}, ids(2, T)
    expected = SCANNED.build().apply(variables, x) / 2
    near(model.apply(variables, x), expected)
    near(model.apply(variables, x, method="readout").logits, expected)
    cache, valid = SCANNED.empty_cache(2, 8), jnp.ones(x.shape, bool)
    last, cache = model.apply(variables, x, cache, valid, method="extend")
    near(last, expected[:, -1])
    np.testing.assert_array_equal(cache.lengths, [T, T])
