"""Token cross-entropy against values worked by hand, and its backends against float64."""

import math
import re
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llama_jax import axes
from llama_jax.kernels.backends import recording
from llama_jax.kernels.cross_entropy import api as module
from llama_jax.kernels.cross_entropy.api import (
    BACKENDS,
    CHUNK,
    LANES,
    accuracy,
    chunked,
    cross_entropy,
    linear_cross_entropy,
)

CHUNKED = [name for name in BACKENDS if name != "dense"]
# Of the largest entry, against float64: the rounding of sums of a few hundred float32.
TOLERANCE = 1e-6
# bfloat16 has 8 bits; slopes and vectors are rounded to it before they are multiplied.
BFLOAT16 = 1e-2
B, T, D, V = 8, 12, 16, 248  # V: 62 words on each of 4 devices, no multiple of the chunks below

# Logits log(p), so that the probabilities are plain: 0.5, 0.25, 0.25 and 0.125, 0.75, 0.125.
LOGITS = np.log(np.array([[0.5, 0.25, 0.25], [0.125, 0.75, 0.125]], np.float32))


def test_sum_and_count_by_hand():
    total, count = cross_entropy(LOGITS, jnp.array([0, 2]))
    assert total == pytest.approx(np.log(2) + np.log(8), rel=1e-6)
    assert count == 2


def test_rows_of_weight_zero_add_nothing_even_if_infinite():
    logits = jnp.array([[0.0, -jnp.inf], [0.0, 0.0]])
    targets, weights = jnp.array([1, 0]), jnp.array([0.0, 1.0])
    total, count = cross_entropy(logits, targets, weights)
    assert total == pytest.approx(np.log(2), rel=1e-6)
    assert count == 1
    grad = jax.grad(lambda x: cross_entropy(x, targets, weights)[0])(
        jnp.array([[0.0, 9.0], [0, 0]])
    )
    np.testing.assert_allclose(grad, [[0, 0], [-0.5, 0.5]], atol=1e-7)


def test_ignored_targets_may_be_out_of_range():
    total, count = cross_entropy(LOGITS, jnp.array([-100, 1]), jnp.array([0.0, 2.0]))
    assert total == pytest.approx(-2 * np.log(0.75), rel=1e-6)
    assert count == 2


def test_smoothing_spreads_a_share_over_the_vocabulary():
    total, _ = cross_entropy(LOGITS[:1], jnp.array([0]), label_smoothing=0.3)
    # Target 0.7 + 0.1, 0.1, 0.1.
    assert total == pytest.approx(-(0.8 * np.log(0.5) + 0.2 * np.log(0.25)), rel=1e-6)


def test_z_loss_adds_the_square_of_log_z():
    total, _ = cross_entropy(LOGITS + 3.0, jnp.array([0, 2]), z_loss=0.1)
    assert total == pytest.approx(np.log(2) + np.log(8) + 2 * 0.1 * 9, rel=1e-5)


def test_bfloat16_logits_are_summed_in_float32():
    total, count = cross_entropy(jnp.zeros((4096, 2), jnp.bfloat16), jnp.zeros(4096, int))
    assert total.dtype == count.dtype == jnp.float32
    assert total == pytest.approx(4096 * np.log(2), rel=1e-6)


def test_accuracy_counts_by_weight():
    right, count = accuracy(LOGITS, jnp.array([0, 0]), jnp.array([1.0, 3.0]))
    assert (right, count) == (1, 4)


def arrays(letters="VD"):
    """x, w, bias, targets, weights: a quarter of the rows without weight, their targets -100."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(B, T, D)).astype(np.float32)
    w = rng.normal(size=(V, D)).astype(np.float32)
    bias = rng.normal(size=V).astype(np.float32)
    targets = rng.integers(0, V, (B, T)).astype(np.int32)
    weights = (rng.random((B, T)) * (rng.random((B, T)) > 0.25)).astype(np.float32)
    targets[weights == 0] = -100
    # Some are right, or no test would see it.
    best = np.argmax(x @ w.T + bias, axis=-1)
    targets[:, 3] = np.where(weights[:, 3] > 0, best[:, 3], -100)
    return x, w if letters == "VD" else w.T, bias, targets, weights


def reference(x, w, bias, targets, weights, smoothing=0.0, z_loss=0.0, g=1.0):
    """Sum, right, and g times the gradients of x, w, bias and weights, in float64; w is [V, D]."""
    x, w, bias, weights = (a.astype(np.float64) for a in (x, w, bias, weights))
    logits = x @ w.T + bias
    log_z = np.log(np.sum(np.exp(logits), axis=-1, keepdims=True))
    hot = np.eye(V)[np.clip(targets, 0, V - 1)] * (1 - smoothing) + smoothing / V
    losses = np.sum(hot * (log_z - logits), axis=-1) + z_loss * log_z[..., 0] ** 2
    slopes = np.exp(logits - log_z) * (1 + 2 * z_loss * log_z) - hot
    slopes *= g * weights[..., None]
    grads = slopes @ w, np.einsum("btv,btd->vd", slopes, x), slopes.sum((0, 1))
    right = np.argmax(logits, axis=-1) == targets
    return np.sum(losses * weights), right, (*grads, g * losses * (weights > 0))


def graded(backend, letters="VD", smoothing=0.0, z_loss=0.0, g=1.0):
    """A jitted function of x, w, bias, targets, weights: (sum, Scored), gradients."""

    def loss(x, w, bias, weights, targets):
        found = linear_cross_entropy(
            x, w, targets, weights, equation=f"BTD,{letters}->BTV", bias=bias,
            label_smoothing=smoothing, z_loss=z_loss, backend=backend,
        )  # fmt: skip
        return g * found.sum, found

    grad = jax.jit(jax.value_and_grad(loss, argnums=(0, 1, 2, 3), has_aux=True))
    return lambda x, w, bias, targets, weights: grad(x, w, bias, weights, targets)


def assert_near(found, expected, letters="VD"):
    """`found` is what `graded` gives, `expected` what `reference` does."""
    (_, scored), grads = found
    total, right, expected = expected
    assert scored.sum == pytest.approx(total, rel=TOLERANCE)
    np.testing.assert_array_equal(scored.right, right)
    for grad, exact in zip(grads, expected, strict=True):
        grad = grad.T if letters == "DV" and grad.shape == (D, V) else grad
        np.testing.assert_allclose(grad, exact, rtol=0, atol=TOLERANCE * np.abs(exact).max())


@pytest.fixture
def small_chunks(monkeypatch):
    """Chunks of a few tokens and words, none of which divides what there is."""
    sizes = {"CPU_CHUNK": 5000, "VOCAB_CHUNK": 5000, "LEAST_TOKENS": 8, "LEAST_WORDS": 8}
    for name, size in (sizes | {"LANES": 4}).items():
        monkeypatch.setattr(module, name, size)
    monkeypatch.setattr(chunked, "ADDED", 1 << 10)


@pytest.mark.usefixtures("small_chunks")
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("letters", "smoothing", "z_loss"), [("VD", 0.0, 0.0), ("DV", 0.1, 1e-2)])
def test_every_backend_gives_the_definition_and_its_gradients(backend, letters, smoothing, z_loss):
    found = graded(backend, letters, smoothing, z_loss, g=0.3)(*arrays(letters))
    assert_near(found, reference(*arrays(), smoothing, z_loss, g=0.3), letters)
    assert found[0][1].count == pytest.approx(arrays()[4].sum(), rel=TOLERANCE)


@pytest.mark.usefixtures("small_chunks")
@pytest.mark.parametrize(
    ("sizes", "rules"),
    [
        ({"data": 2}, axes.FSDP_TENSOR),
        ({"fsdp": 2, "tensor": 2}, axes.FSDP_TENSOR),
        ({"fsdp": 2, "tensor": 2}, axes.FSDP_TENSOR_RESIDUAL),
        ({"data": 2, "context": 2, "tensor": 2}, axes.FSDP_TENSOR),
    ],
    ids=["2", "4", "residual", "8"],
)
@pytest.mark.parametrize("backend", CHUNKED)
def test_devices_share_tokens_and_words_and_give_the_same(backend, sizes, rules):
    x, w, bias, targets, weights = arrays()
    mesh = axes.make_mesh(**{"data": 1} | sizes, devices=jax.devices()[: math.prod(sizes.values())])
    with axes.using(mesh, rules):
        x = jax.device_put(x, jax.NamedSharding(mesh, axes.activation_spec("BTD")))
        w = jax.device_put(w, axes.weight_sharding("VD", w.shape, mesh, rules))
        found = graded(backend)(x, w, bias, targets, weights)
        assert found[1][1].sharding.is_equivalent_to(w.sharding, 2)
    assert_near(found, reference(*arrays()))


@pytest.mark.parametrize("backend", CHUNKED)
def test_no_logits_and_no_vectors_move_between_devices(backend, mesh, monkeypatch):
    monkeypatch.setattr(module, "CPU_CHUNK", 1 << 16)
    monkeypatch.setattr(module, "VOCAB_CHUNK", 1 << 16)
    B, T, D, V = 16, 256, 32, 4096

    def loss(x, w, targets):
        found = linear_cross_entropy(x, w, targets, equation="BTD,VD->BTV", backend=backend)
        return found.sum, found.right

    on = mesh(8, fsdp=4, tensor=2)
    with axes.using(on):
        shapes = (
            jax.ShapeDtypeStruct(
                (B, T, D), "float32", sharding=jax.NamedSharding(on, axes.activation_spec("BTD"))
            ),
            jax.ShapeDtypeStruct(
                (V, D),
                "float32",
                sharding=axes.weight_sharding("VD", (V, D), on, axes.FSDP_TENSOR),
            ),
            jax.ShapeDtypeStruct(
                (B, T), "int32", sharding=jax.NamedSharding(on, axes.activation_spec("BT"))
            ),
        )
        step = jax.jit(jax.grad(loss, argnums=(0, 1), has_aux=True))
        text = step.lower(*shapes).compile().as_text()
    moved = re.findall(r"= .?\w+\[([\d,]*)\].* (all-[a-z-]+|collective-[a-z]+)\(", text)
    sizes = [math.prod(map(int, shape.split(","))) for shape, _ in moved if shape]
    assert sizes
    # Sums over the words of each device's tokens; its words of w; nothing of the size of logits.
    assert max(sizes) <= V // 2 * D


@pytest.mark.usefixtures("small_chunks")
@pytest.mark.parametrize("backend", BACKENDS)
def test_bfloat16_products_are_summed_in_float32(backend):
    x, w, bias, targets, weights = arrays()
    (_, scored), grads = graded(backend)(jnp.asarray(x, "bfloat16"), w, bias, targets, weights)
    rounded = np.asarray(jnp.asarray(x, "bfloat16").astype("float32"))
    total, _, expected = reference(rounded, w, bias, targets, weights)
    assert [grad.dtype for grad in grads] == ["bfloat16", "float32", "float32", "float32"]
    assert scored.sum == pytest.approx(total, rel=BFLOAT16)
    for grad, exact in zip(grads, expected, strict=True):
        atol = BFLOAT16 * np.abs(exact).max()
        np.testing.assert_allclose(np.float32(grad), exact, rtol=0, atol=atol)


@pytest.mark.usefixtures("small_chunks")
@pytest.mark.parametrize("backend", BACKENDS)
def test_a_word_of_bias_minus_infinity_is_never_said(backend):
    x, w, bias, targets, weights = arrays()
    bias[:20] = -np.inf
    targets = np.where(targets < 20, 20, targets)
    (_, scored), grads = graded(backend)(x, w, bias, targets, weights)
    assert np.isfinite(scored.sum)
    assert all(np.isfinite(grad).all() for grad in grads)
    assert not np.any(grads[1][:20])


@pytest.mark.usefixtures("small_chunks")
@pytest.mark.parametrize("backend", BACKENDS)
def test_of_equal_logits_the_first_is_said(backend):
    x, w = jnp.ones((1, 40, D)), jnp.zeros((V, D)).at[jnp.array([61, 100, 247])].set(1)
    targets = jnp.where(jnp.arange(40) % 2, 61, 100)[None]
    scored = jax.jit(partial(linear_cross_entropy, equation="BTD,VD->BTV", backend=backend))
    np.testing.assert_array_equal(scored(x, w, targets).right, targets == 61)


@pytest.mark.parametrize("backend", CHUNKED)
@pytest.mark.parametrize("letters", ["VD", "DV"])
def test_memory_is_a_small_share_of_the_logits(backend, letters):
    T, D, V = 8192, 2048, 128_256
    shapes = [(T, D), (V, D) if letters == "VD" else (D, V)]
    x, w = (jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes)

    def loss(x, w, targets):
        equation = f"TD,{letters}->TV"
        found = linear_cross_entropy(x, w, targets, equation=equation, backend=backend)
        return found.sum / T, found.right

    step = jax.jit(jax.grad(loss, argnums=(0, 1), has_aux=True))
    stats = step.lower(x, w, jax.ShapeDtypeStruct((T,), jnp.int32)).compile().memory_analysis()
    assert stats.temp_size_in_bytes < 4 * T * V / 8


def test_whoever_asks_for_the_count_alone_computes_no_logits():
    x, w, bias, targets, weights = map(jnp.asarray, arrays("DV"))
    count = jax.jit(lambda x, w: linear_cross_entropy(x, w, targets, weights, bias=bias).count)
    assert "dot(" not in count.lower(x, w).compile().as_text()


def shapes_of(tokens, width, vocab, dtype=jnp.float32):
    """x, w and targets without values."""
    return (
        jax.ShapeDtypeStruct((1, tokens, width), dtype),
        jax.ShapeDtypeStruct((width, vocab), jnp.float32),
        jax.ShapeDtypeStruct((1, tokens), jnp.int32),
    )


@pytest.mark.parametrize(
    ("shapes", "name", "why"),
    [
        (shapes_of(512, 64, 1024), "dense", "512 x 1024 logits are few enough for the dense form"),
        (shapes_of(2048, 576, 49_152), "xla_tokens", ""),
        (
            shapes_of(8192, 2048, 128_256, jnp.bfloat16),
            "xla_vocab",
            "xla_tokens: 501 MiB beside the chunks are too much to save a product of 4008 MiB",
        ),
    ],
)
def test_auto_chooses_by_size_and_says_why(shapes, name, why):
    with recording() as receipts:
        jax.eval_shape(linear_cross_entropy, *shapes)
    [receipt] = receipts
    assert receipt.backend == name and receipt.kind == "cross-entropy"
    assert why in str(receipt)


def case_of(platform="tpu", tokens=2 * 8192, width=4096, vocab=128_256, copies=256, shares=1):
    """A device's share of a loss in bfloat16, by default Llama 3.1 8B's on 256 chips."""
    x = jax.ShapeDtypeStruct((copies, tokens, width), jnp.bfloat16)
    w = jax.ShapeDtypeStruct((width, vocab * shares), jnp.float32)
    return module.Case(platform, x, w, tokens, width, vocab, copies, shares)


def test_an_accelerator_keeps_a_gradient_of_w_where_a_block_needs_as_much_memory():
    case = case_of()
    assert module._no_room(case) is None
    chunk = CHUNK["xla_tokens"](case)
    held = module._held(case) + module.OF_A_LOGIT * chunk * case.vocab
    assert held <= module.OF_A_BLOCK * case.tokens * case.width * 2
    assert (chunk, case.tokens % chunk) == (1024, 0)  # no product of padding
    # A part of the words goes with a part of the heads, and so of what a block holds.
    assert CHUNK["xla_tokens"](case_of(vocab=128_256 // 4, shares=4)) == 1024


def test_few_tokens_or_a_cpu_leave_it_to_chunks_of_words():
    few, cpu = case_of(tokens=8192), case_of(platform="cpu")
    for case in few, cpu:
        assert "are too much to save a product" in (module._no_room(case) or "")
    assert CHUNK["xla_vocab"](cpu) == module.LEAST_WORDS
    # On an accelerator there are few, and together they hold a part of what a block does.
    words = CHUNK["xla_vocab"](few)
    assert 8 * module.LEAST_WORDS <= words < few.vocab
    assert module.OF_A_LOGIT * words * few.tokens < module._room(few) / 2


@given(st.integers(1, 10**6), st.integers(1, 10**6))
def test_chunks_divide_the_tokens_or_are_even(total, most):
    size = module._divided(total, most)
    assert 0 < size < most + LANES
    assert total % size == 0 or size == module._even(total, most, LANES)


@pytest.mark.parametrize("backend", CHUNKED)
def test_in_bfloat16_devices_sum_the_gradient_of_w_as_that_of_any_weight(backend, mesh):
    x, w, _, targets, weights = arrays()
    on = mesh(4, fsdp=4)

    def loss(x, w):
        options: Any = {"equation": "BTD,VD->BTV", "backend": backend}
        return linear_cross_entropy(x, w, targets, weights, **options).sum

    with axes.using(on):
        x = jax.device_put(x, jax.NamedSharding(on, axes.activation_spec("BTD")))
        w = jax.device_put(w, axes.weight_sharding("VD", w.shape, on, axes.FSDP_TENSOR))
        step = jax.jit(jax.grad(loss, argnums=1))
        text = str(step.trace(x.astype("bfloat16"), w).jaxpr)
        found = step(x.astype("bfloat16"), w)
    # Asked for here: a CPU's compiler would send float32 all the same.
    kind = "reduce" if backend == "xla_tokens" else "dot_general"
    assert re.search(rf"bf16\[(1,)?248,16\] = {kind}\[", text)
    exact = reference(*arrays()[:2], np.zeros(V), targets, weights)[2][1]
    np.testing.assert_allclose(found, exact, rtol=0, atol=BFLOAT16 * np.abs(exact).max())


@given(st.integers(1, 10**6), st.integers(1, 10**6), st.integers(1, 4096))
def test_chunks_are_even_and_reach_the_end(total, most, least):
    size = module._even(total, most, least)
    count = -(-total // size)
    assert size < max(most, least) + LANES
    assert size == total or size % LANES == 0
    assert size * count - total < max(count, 1) * LANES


@pytest.mark.parametrize("each", [[1, 1], [2, 1], [1, 3], [4, 3]])
def test_tokens_are_dealt_and_gathered(each):
    x = jnp.arange(8 * 6 * 2).reshape(8, 6, 2)
    dealt = chunked._dealt(x, each)
    assert dealt.shape == (math.prod(each), 48 // math.prod(each), 2)
    np.testing.assert_array_equal(chunked._gathered(dealt, (8, 6), each), x)
    # The first device has the first rows and the first of their tokens.
    np.testing.assert_array_equal(dealt[0, 0], x[0, 0])


def test_mistakes_are_named():
    x, w, targets = jnp.zeros((2, 3, 4)), jnp.zeros((4, 5)), jnp.zeros((2, 3), int)
    with pytest.raises(ValueError, match=r"expected one like 'BTD,DV->BTV'"):
        linear_cross_entropy(x, w, targets, equation="BTD,VF->BTF")
    with pytest.raises(ValueError, match=r"\(2, 3, 4\) and w \(4, 5\) do not fit"):
        linear_cross_entropy(x, w, targets, equation="BTD,VD->BTV")
    with pytest.raises(ValueError, match="backend 'xla_token'.*Did you mean 'xla_tokens'"):
        linear_cross_entropy(x, w, targets, backend="xla_token")
