"""The one call: both XLA forms, which is taken when, and what is refused by name."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from llama_jax.kernels.attention.api import BACKENDS, Case, attention
from llama_jax.kernels.attention.mask import Mask
from llama_jax.kernels.backends import choose
from tests.kernels.attention.suite import TOLERANCE, truth

XLA = ["xla", "xla_chunked"]


def random(B=2, T=9, S=11, N=4, K=2, H=8, seed=0):
    rng = np.random.default_rng(seed)
    shapes = ((B, T, N, H), (B, S, K, H), (B, S, K, H))
    return [jnp.asarray(rng.normal(size=s), jnp.float32) for s in shapes]


def close(found, expected):
    expected = np.asarray(expected)
    scale = max(np.abs(expected).max(), 1e-3)  # all may be hidden
    np.testing.assert_allclose(found, expected, rtol=0, atol=TOLERANCE["float32"] * scale)


@pytest.mark.parametrize("length", [130, 600])
@pytest.mark.parametrize(
    "mask", [Mask(), Mask(causal=True), Mask(causal=True, window=100, chunk=250)]
)
def test_the_chunked_form_equals_the_dense_one_in_several_groups_of_blocks(mask, length):
    inputs = random(B=1, T=length, S=length, N=2, K=1, seed=3)

    def run(backend):
        def total(q, k, v):
            out = attention(q, k, v, mask, backend=backend)
            return jnp.sum(jnp.sin(out)), out

        return jax.jit(jax.grad(total, (0, 1, 2), has_aux=True))(*inputs)

    jax.tree.map(close, run("xla_chunked"), run("xla"))


def test_the_chunked_form_s_memory_grows_with_the_length_and_not_its_square():
    def memory(T):
        q, k = (jax.ShapeDtypeStruct((1, T, n, 64), jnp.float32) for n in (2, 1))

        def total(q, k, v):
            return jnp.sum(attention(q, k, v, Mask(causal=True), backend="xla_chunked"))

        step = jax.jit(jax.grad(total, (0, 1, 2))).lower(q, k, k).compile()
        return step.memory_analysis().temp_size_in_bytes

    # Blocks have 256 rows from 2,048 on: twice the length, twice the scores of a block.
    assert memory(8192) < 2.2 * memory(4096)


def test_a_bias_is_added_to_the_scores():
    q, k, v = random()
    bias = np.random.default_rng(1).normal(size=(4, 9, 11)).astype(np.float32)
    mask = Mask(causal=True)
    seen = np.broadcast_to(mask.dense(9, 11), (2, 9, 11))
    found = attention(q, k, v, mask, bias=jnp.asarray(bias), scale=1.0)
    close(found, truth(q, k, v, seen, q, scale=1.0, bias=bias)[0])


@pytest.mark.parametrize("backend", XLA)
def test_a_query_without_keys_gives_zeros_and_finite_gradients(backend):
    q, k, v = random()
    mask = Mask(kv_valid=jnp.array([[False] * 11, [True] * 11]))

    def total(q, k, v):
        out = attention(q, k, v, mask, backend=backend)
        return jnp.sum(out**2), out

    *grads, out = jax.tree.leaves(jax.jit(jax.grad(total, (0, 1, 2), has_aux=True))(q, k, v))
    np.testing.assert_array_equal(out[0], 0)
    for grad in grads:
        assert np.isfinite(grad).all()
        np.testing.assert_array_equal(grad[0], 0)


def test_keys_summed_apart_leave_no_trace_when_none_is_valid():
    q, k, v = random()
    there = jnp.arange(11)[None] < 4
    alone = attention(q, k, v, Mask(kv_valid=there, parts=(4, 7)), backend="xla")
    other = attention(q, k, v.at[:, 4:].set(7.0), Mask(kv_valid=there, parts=(4, 7)), backend="xla")
    np.testing.assert_array_equal(alone, other)


def case(T, S=None, mask=None, bias=False, platform="cpu"):
    q, k = (jax.ShapeDtypeStruct((1, n, 2, 64), jnp.float32) for n in (T, S or T))
    return Case(platform, q, k, mask or Mask(causal=True), bias, None)


def test_auto_takes_the_chunked_form_from_128_tokens_on():
    def chosen(*args, **named):
        return choose("attention", BACKENDS, case(*args, **named))

    assert chosen(64) == "xla"
    assert chosen(128) == chosen(4096) == "xla_chunked"
    assert chosen(4096, bias=True) == "xla"
    assert chosen(4096, mask=Mask(parts=(4000, 96))) == "xla"
    assert chosen(1, 8192) == "xla"  # a token of decoding


def test_a_named_backend_refuses_with_its_reason():
    q, k, v = random()
    with pytest.raises(ValueError, match="'xla_chunked': an additive bias"):
        attention(q, k, v, bias=jnp.zeros((4, 9, 11)), backend="xla_chunked")
    with pytest.raises(ValueError, match="'ring': the sequence is not split"):
        attention(q, k, v, backend="ring")


def test_an_unknown_backend_is_named_with_the_nearest():
    with pytest.raises(ValueError, match="Did you mean 'xla_chunked'"):
        attention(*random(), backend="xla_chunk")


@pytest.fixture
def unchecked(monkeypatch):
    """Without the tests' type checker, which would speak before our own errors do."""
    import jaxtyping

    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda q, k, v: (q[0], k, v), "expected q"),
        (lambda q, k, v: (q, k, v[:, :5]), "expected q"),
        (lambda q, k, v: (q[..., :4], k, v), "head dim"),
        (lambda q, k, v: (q[:, :, :3], k, v), "not a multiple"),
        (lambda q, k, v: (q.astype(jnp.bfloat16), k, v), "one type"),
    ],
)
def test_shapes_that_do_not_fit_are_refused(change, message, unchecked):
    with pytest.raises(ValueError, match=message):
        attention(*change(*random()))


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        (lambda: Mask(kv_valid=jnp.ones((2, 9), bool)), "kv_valid has shape"),
        (lambda: Mask(allow=jnp.ones((2, 9, 9), bool)), "allow has shape"),
        (lambda: Mask(causal=True, prefix=jnp.ones((3,), int)), "prefix has shape"),
        (lambda: Mask(q_positions=jnp.zeros((2, 9), int)), "positions without a causal"),
        (lambda: Mask(kv_positions=jnp.zeros((2, 11), int)), "positions without a causal"),
        (lambda: Mask(prefix=3), "prefix without a causal"),
        (lambda: Mask(causal=True, q_positions=jnp.zeros((2, 9))), "q_positions is float32"),
        (lambda: Mask(kv_valid=jnp.ones((2, 11), int)), "kv_valid is int32"),
    ],
)
def test_masks_that_do_not_fit_are_refused(mask, message, unchecked):
    with pytest.raises(ValueError, match=message):
        attention(*random(), mask())


def test_integers_and_a_softcap_of_zero_are_refused(unchecked):
    q, k, v = random()
    with pytest.raises(ValueError, match="softcap=0.0 caps nothing"):
        attention(q, k, v, softcap=0.0)
    with pytest.raises(ValueError, match="are int32; cast"):
        attention(*jax.tree.map(lambda x: x.astype(jnp.int32), (q, k, v)))
