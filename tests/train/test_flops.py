"""FLOPs against sums made by hand."""

import jax
import jax.numpy as jnp
import pytest

from llama_jax import presets
from llama_jax.kernels.attention.api import attention
from llama_jax.kernels.attention.mask import Mask
from llama_jax.kernels.flop_count import counting, pairs
from llama_jax.objectives.base import losses
from llama_jax.train.flops import counted, model_flops, work
from llama_jax.train.load import build
from llama_jax.train.step import bind, initializer

T = 512


def f32(*shape):
    return jax.ShapeDtypeStruct(shape, jnp.float32)


def test_a_product_counts_two_operations_a_multiply_add():
    assert counted(jnp.dot, f32(3, 5), f32(5, 7)) == 2 * 3 * 5 * 7


def test_a_scan_counts_as_often_as_it_runs_and_a_vmap_as_wide_as_it_is():
    def loop(x, w):
        return jax.lax.scan(lambda x, _: (jax.checkpoint(jnp.dot)(x, w), None), x, length=11)[0]

    assert counted(loop, f32(2, 3), f32(3, 3)) == 11 * 2 * 2 * 3 * 3
    many = counted(jax.vmap(loop, (0, None)), f32(4, 2, 3), f32(3, 3))
    assert many == 4 * counted(loop, f32(2, 3), f32(3, 3))


def test_a_while_loop_whose_length_is_not_known_is_refused():
    def loop(x, w, n):
        return jax.lax.fori_loop(0, n, lambda _, x: x @ w, x)

    with pytest.raises(ValueError, match="how often it runs is not known"):
        counted(loop, f32(2, 3), f32(3, 3), jax.ShapeDtypeStruct((), jnp.int32))
    assert counted(lambda x, w: loop(x, w, 5), f32(2, 3), f32(3, 3)) == 5 * 2 * 2 * 3 * 3


def test_what_nothing_depends_on_does_not_count():
    assert counted(lambda x: (x @ x, x)[1], f32(3, 3)) == 0


def test_a_convolution_counts_its_window():
    def conv(x, w):
        return jax.lax.conv_general_dilated(x, w, (1, 1), "VALID")

    # 8 x 8 -> 6 x 6, 3 channels to 5, a window of 3 x 3
    assert counted(conv, f32(2, 3, 8, 8), f32(5, 3, 3, 3)) == 2 * (2 * 5 * 6 * 6) * 3 * 3 * 3


def test_every_device_of_a_shard_map_counts(mesh):
    spec = jax.sharding.PartitionSpec("data")
    whole = jax.shard_map(lambda x: x @ x.T @ x, mesh=mesh(4), in_specs=spec, out_specs=spec)
    assert counted(whole, f32(8, 16)) == 4 * 2 * (2 * 2 * 2 * 16)


@pytest.mark.parametrize(
    ("mask", "diagonal"),
    [
        (Mask(), 0),
        (Mask(window=3), 0),
        (Mask(window=30), 0),
        (Mask(causal=True), 10),
        (Mask(causal=True, window=5), 5),
        (Mask(causal=True, chunk=4), 10),
    ],
)
def test_pairs_are_those_of_the_dense_mask_but_for_half_of_a_causal_ones_diagonal(mask, diagonal):
    assert pairs(mask, 10, 10) == int(mask.dense(10, 10).sum()) - diagonal / 2


@pytest.mark.parametrize("backend", ["xla", "xla_chunked"])
def test_attention_counts_alike_whichever_backend_computes_it(backend):
    def out(q, k, v):
        return attention(q, k, v, Mask(causal=True), backend=backend)

    q, k = f32(2, T, 4, 8), f32(2, T, 2, 8)
    forward = 4 * 2 * 4 * 8 * T * T / 2
    assert counted(out, q, k, k) == forward

    def loss(*args):
        return jnp.sum(out(*args))

    assert counted(jax.grad(loss, (0, 1, 2)), q, k, k) == 3.5 * forward
    assert work(lambda q, k, w: out(q, k, k) @ w, q, k, f32(q.shape[-1], 3)).attention == forward
    again = jax.checkpoint(lambda *args: jnp.sum(jnp.sin(out(*args))))
    assert counted(jax.value_and_grad(again, (0, 1, 2)), q, k, k) == 4.5 * forward


def test_counting_leaves_no_trace_in_what_runs():
    q = jax.random.normal(jax.random.key(0), (1, 8, 2, 4))
    before = attention(q, q, q, Mask(causal=True))
    with counting():
        jax.eval_shape(lambda q: attention(q, q, q, Mask(causal=True)), q)
    assert (attention(q, q, q, Mask(causal=True)) == before).all()


def test_a_decoder_costs_six_a_weight_and_token_and_half_of_its_attention():
    run = presets.get("smollm2_135m")
    ids, weights = jax.ShapeDtypeStruct((2, T), jnp.int32), f32(2, T)
    names = ("tokens", "targets", "positions", "segments")
    batch = {"text": {name: ids for name in names} | {"loss_weights": weights}}
    fields = {"text": {name: (x.shape, x.dtype) for name, x in batch["text"].items()}}
    model, total = build(run), losses(run.objectives)
    init = initializer(model, total, fields)
    key = jax.eval_shape(lambda: jax.random.key(0))
    params = jax.tree.map(
        lambda box: box.value,
        jax.eval_shape(init, key),
        is_leaf=lambda x: hasattr(x, "letters"),
    )
    # Norms (one letter) take part in no product; the tied embedding does, as the readout.
    products = sum(x.size for x in jax.tree.leaves(params)) - 576 * (2 * 30 + 1)
    by_hand = 6 * products + 6 * 30 * 576 * T  # 12 L D T / 2
    assert model_flops(bind(model, total), params, batch, key) == 2 * T * by_hand
