"""Stages: the same loss and gradients as the scan, each micro-batch with its own context."""

import dataclasses
import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from llama_jax import axes
from llama_jax.errors import UserError
from llama_jax.kernels.backends import recording, summary
from llama_jax.layers import pipeline
from llama_jax.layers.attention import Attention
from llama_jax.layers.block import Block
from llama_jax.layers.inputs import Inputs
from llama_jax.layers.mlp import SwiGLU
from llama_jax.layers.stack import Period, Stack
from llama_jax.models.decoder import Decoder
from llama_jax.models.fusion import Late
from llama_jax.models.multimodal import Multimodal
from llama_jax.models.text_encoder import TextEncoder
from llama_jax.models.tokens import text_positions

# Of the norm of all gradients, in float32: two orders of the same sums.
TOLERANCE = 1e-6
ROWS, LENGTH = 8, 8


def block(**fields) -> Block:
    return Block(Attention(2, 2, 8, **fields), SwiGLU(24))


# A pattern of two blocks, as Llama 4 has them, and one that reads a memory.
CAUSAL = (block(causal=True), block(causal=True, window=3))
DECODER = Decoder(64, 16, Stack(CAUSAL, repeats=4, remat="block"))
READER = dataclasses.replace(block(causal=True), cross=Attention(2, 2, 8, rope=None))
SEED = Multimodal(
    TextEncoder(64, 16, Stack((block(),), repeats=2)),
    Late(),
    decoder=Decoder(64, 16, Stack((READER,), repeats=2)),
    norm=None,
)


@functools.cache
def batch() -> dict[str, np.ndarray]:
    """Packed rows that differ in everything that a row can differ in."""
    rng = np.random.default_rng(0)
    segments = np.sort(rng.integers(0, 3, (ROWS, LENGTH)), axis=1)
    begins = np.diff(segments, axis=1, prepend=-1) != 0
    start = np.maximum.accumulate(np.where(begins, np.arange(LENGTH), 0), axis=1)
    return {
        "ids": rng.integers(0, 64, (ROWS, LENGTH)).astype(np.int32),
        "segments": segments.astype(np.int32),
        "positions": (np.arange(LENGTH) - start).astype(np.int32),
        "valid": np.arange(LENGTH) < rng.integers(1, LENGTH + 1, (ROWS, 1)),
    }


def said(model, params, fields):
    """Logits of the decoder alone, or of one that reads what an encoder made of other ids."""
    packed = {"segments_BT": fields["segments"], "positions_BT": fields["positions"]}

    def both(m):
        memory = None
        if hasattr(m, "encode_text"):
            memory = m.join({"text": m.encode_text(fields["ids"][:, ::-1], fields["valid"])})
        return m.decode(fields["ids"], memory, **packed)[0]

    return nn.apply(both, model)({"params": params})


def loss(model, params, fields):
    logits, target = said(model, params, fields), jnp.roll(fields["ids"], -1, axis=1)
    return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(logits, target))


@functools.cache
def whole(config):
    """Weights, and the loss and gradients of one device."""
    model, fields = config.build(), batch()

    def init(m):
        memory = m.encode_text(fields["ids"]) if hasattr(m, "encode_text") else None
        return m.decode(fields["ids"], memory)

    params = nn.meta.unbox(nn.init(init, model)(jax.random.key(0))["params"])
    return params, *jax.jit(jax.value_and_grad(functools.partial(loss, model)))(params, fields)


@pytest.mark.parametrize(
    ("config", "devices", "sizes"),
    [
        (DECODER, 4, {"stage": 4}),
        (DECODER, 8, {"stage": 2, "fsdp": 2, "tensor": 2}),
        (DECODER, 4, {"stage": 2, "context": 2}),
        (SEED, 4, {"stage": 2, "data": 2}),
    ],
)
@pytest.mark.meshes
def test_stages_give_the_loss_and_gradients_of_the_scan(mesh, config, devices, sizes):
    params, expected, gradients = whole(config)
    step = jax.jit(jax.value_and_grad(functools.partial(loss, config.build())))
    with axes.using(mesh(devices, **{"data": 1} | sizes)), recording() as receipts:
        compiled = step.lower(params, batch()).compile()
        found, parts = jax.device_get(compiled(params, batch()))
    assert "pipeline: " in summary(receipts)
    assert "collective-permute" in compiled.as_text()
    np.testing.assert_allclose(found, expected, rtol=TOLERANCE)
    apart = optax.tree.norm(jax.tree.map(np.subtract, parts, jax.device_get(gradients)))
    assert apart <= TOLERANCE * optax.tree.norm(gradients)


def test_each_micro_batch_and_layer_draws_its_own_dropout(mesh):
    """Against micro-batches one after another, layer by layer, with the keys of the pipeline."""
    dropping = dataclasses.replace(block(), dropout=0.5)
    stack = Stack((dropping,), repeats=4).build()
    x = jax.random.normal(jax.random.key(1), (ROWS, LENGTH, 16))
    ctx = Inputs(text_positions(ROWS, LENGTH), jnp.asarray(batch()["valid"]))
    params = nn.meta.unbox(stack.init(jax.random.key(0), x, ctx)["params"])
    key = jax.random.key(2)
    with axes.using(mesh(4, stage=2, data=2)):
        deal = pipeline.Deal.of(ROWS, 4)
        run = jax.jit(lambda x: stack.apply({"params": params}, x, ctx, rngs={"dropout": key}).x)
        found = run(x)
        dealt = jax.jit(lambda tree: jax.tree.map(deal.out, tree))
        parts, positions, valid = dealt((x, ctx.positions, ctx.valid))
        parts, positions, valid = jax.device_get((parts, positions, valid))
    expected = []
    one = jax.jit(
        lambda weights, y, ctx, key: Period((dropping,)).apply(
            {"params": weights}, y, None, ctx, None, rngs={"dropout": key}
        )[0]
    )
    drawn = nn.apply(lambda m: m.make_rng("dropout"), stack)({}, rngs={"dropout": key})
    for number, part in enumerate(parts):
        y, mine = part, Inputs(positions[number], valid[number])
        for layer in range(4):
            weights = jax.tree.map(lambda a, i=layer: a[i], params["layers"])
            y = one(weights, y, mine, pipeline.key_of(drawn, number, layer))
        expected.append(y)
    with axes.using(mesh(4, stage=2, data=2)):
        expected = jax.jit(deal.back)(np.stack(expected))
    np.testing.assert_allclose(found, expected, atol=1e-5)


@pytest.mark.parametrize("count", [0, 2, 4])
def test_rows_come_back_in_their_order(mesh, count):
    rules = dataclasses.replace(axes.FSDP_TENSOR, microbatches=count)
    rows = jnp.arange(16)
    with axes.using(mesh(8, stage=2, fsdp=2, tensor=2), rules):
        deal = pipeline.Deal.of(16, 4)
        there = jax.jit(deal.out)(rows)
        home = jax.jit(deal.back)(there)
    assert there.shape == ((count or 8), 16 // (count or 8))
    assert sorted(np.ravel(there)) == list(range(16))
    np.testing.assert_array_equal(home, rows)


@pytest.mark.parametrize(
    ("rows", "layers", "count", "words"),
    [
        (8, 3, 0, "axis L: a stack of 3 periods cannot be cut into 2 equal stages"),
        (8, 4, 3, "3 micro-batches are not a multiple of the 2 stages; .*microbatches 4"),
        (8, 4, 8, "axis B: 8 rows cannot be dealt into 8 micro-batches .* multiple of 16"),
        (6, 4, 0, "axis B: 6 rows cannot be dealt into 2 stages .* multiple of 4"),
    ],
)
def test_what_does_not_divide_is_refused_by_name(mesh, rows, layers, count, words):
    rules = dataclasses.replace(axes.FSDP_TENSOR, microbatches=count)
    with axes.using(mesh(4, stage=2, data=2), rules), pytest.raises(UserError, match=words):
        pipeline.Deal.of(rows, layers)


def test_a_stack_that_does_not_divide_is_refused_before_its_first_step(mesh):
    model = Decoder(64, 16, Stack(CAUSAL, repeats=3)).build()
    with axes.using(mesh(2, stage=2, data=1)), pytest.raises(UserError, match="3 periods"):
        jax.eval_shape(lambda: model.init(jax.random.key(0), batch()["ids"], method="decode"))


def test_a_cache_and_a_lone_period_need_no_stages(mesh):
    params, *_ = whole(DECODER)
    model, ids = DECODER.build(), batch()["ids"]
    expected, _ = model.apply({"params": params}, ids, method="decode")
    with axes.using(mesh(4, stage=2, data=2)):
        cache = DECODER.empty_cache(ROWS, LENGTH)
        decode = jax.jit(lambda c: model.apply({"params": params}, ids, cache=c, method="decode"))
        found, _ = decode(cache)
        one = Stack((block(),)).build()
        x, ctx = jnp.ones((4, 2, 16)), Inputs(text_positions(4, 2), jnp.ones((4, 2), bool))
        with recording() as receipts:
            jax.eval_shape(lambda: one.init_with_output(jax.random.key(0), x, ctx))
    np.testing.assert_allclose(found, expected, atol=1e-5)
    assert "pipeline" not in summary(receipts)


def test_the_bubble_shrinks_with_micro_batches():
    assert pipeline.bubble(1, 4) == 0
    assert pipeline.bubble(4, 4) == pytest.approx(3 / 7)
    assert pipeline.bubble(4, 16) == pytest.approx(3 / 19)
