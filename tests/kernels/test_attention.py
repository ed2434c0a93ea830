"""Attention: every backend against a float64 definition, gradients too; refusals by name."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llama_jax.kernels import Mask, attention
from llama_jax.kernels.attention import BACKENDS, Case, choose

# Those that take every mask.
GENERAL = [name for name in BACKENDS if name != "xla_triangle"]
# float32 against float64: values are of order 1, sums of some tens of terms.
TOLERANCE = 2e-6
# Gradients here are sums over up to 600 queries of terms of order 1.
GRADIENT_TOLERANCE = 2e-5


def reference(q, k, v, seen, scale=None, softcap=None, bias=0.0):
    """The definition in float64, one query at a time."""
    q, k, v = (np.asarray(a, np.float64) for a in (q, k, v))
    B, T, N, H = q.shape
    out = np.zeros_like(q)
    group = N // k.shape[2]
    scale = H**-0.5 if scale is None else scale
    for b, t, n in np.ndindex(B, T, N):
        keys = np.flatnonzero(seen[b, t])
        if len(keys):
            scores = k[b, keys, n // group] @ q[b, t, n] * scale
            if softcap:
                scores = softcap * np.tanh(scores / softcap)
            scores = scores + (bias[n, t, keys] if np.ndim(bias) else bias)
            weights = np.exp(scores - scores.max())
            out[b, t, n] = weights / weights.sum() @ v[b, keys, n // group]
    return out


def random(B=2, T=9, S=11, N=4, K=2, H=8, seed=0):
    rng = np.random.default_rng(seed)
    shapes = ((B, T, N, H), (B, S, K, H), (B, S, K, H))
    return [jnp.asarray(rng.normal(size=s), jnp.float32) for s in shapes]


def dense(mask, B, T, S):
    return np.broadcast_to(mask.dense(T, S), (B, T, S))


SEGMENTS = jnp.array([[1, 1, 1, 2, 2, 2, 2, 3, 3], [1, 1, 2, 2, 3, 3, 3, 3, 3]])
MASKS = {
    "all": Mask(),
    "causal": Mask(causal=True),
    "window": Mask(causal=True, window=3),
    "chunk": Mask(causal=True, chunk=4),
    "prefix": Mask(causal=True, prefix=jnp.array([3, 0])),
    "valid": Mask(kv_valid=jnp.arange(11)[None] < jnp.array([[11], [4]])),
    "segments": Mask(q_segments=SEGMENTS, kv_segments=jnp.pad(SEGMENTS, ((0, 0), (0, 2)))),
    "nothing": Mask(kv_valid=jnp.zeros((2, 11), bool)),
    "parts": Mask(kv_valid=jnp.arange(11)[None] % 3 > jnp.array([[0], [1]]), parts=(4, 7)),
    "allow": Mask(allow=jnp.arange(2 * 9 * 11).reshape(2, 9, 11) % 5 == 1),
}


@pytest.mark.parametrize("backend", GENERAL)
@pytest.mark.parametrize("name", MASKS)
@pytest.mark.parametrize("softcap", [None, 2.0])
def test_a_backend_computes_the_definition(backend, name, softcap):
    q, k, v = random()
    found = attention(q, k, v, MASKS[name], softcap=softcap, backend=backend)
    expected = reference(q, k, v, dense(MASKS[name], 2, 9, 11), softcap=softcap)
    np.testing.assert_allclose(found, expected, atol=TOLERANCE)


@pytest.mark.parametrize("kv_heads", [1, 2, 4])
def test_grouped_heads_share_keys_in_order(kv_heads):
    q, k, v = random(K=kv_heads)
    expected = reference(q, k, v, np.ones((2, 9, 11), bool))
    np.testing.assert_allclose(attention(q, k, v), expected, atol=TOLERANCE)


def test_a_bias_is_added_to_the_scores():
    q, k, v = random()
    bias = np.random.default_rng(1).normal(size=(4, 9, 11)).astype(np.float32)
    mask = Mask(causal=True)
    expected = reference(q, k, v, dense(mask, 2, 9, 11), scale=1.0, bias=bias)
    found = attention(q, k, v, mask, bias=jnp.asarray(bias), scale=1.0)
    np.testing.assert_allclose(found, expected, atol=TOLERANCE)


@pytest.mark.parametrize("backend", GENERAL)
@pytest.mark.parametrize("name", MASKS)
def test_gradients_agree_with_differences_of_the_definition_in_float64(name, backend):
    inputs, rng = random(), np.random.default_rng(7)
    seen, weights = dense(MASKS[name], 2, 9, 11), rng.normal(size=(2, 9, 4, 8))
    ways = [rng.normal(size=x.shape) for x in inputs]

    def moved(step):
        there = [
            np.asarray(x, np.float64) + step * way for x, way in zip(inputs, ways, strict=True)
        ]
        return np.sum(weights * reference(*there, seen))

    step = 1e-5  # its square and float64's rounding by it are both below 1e-9
    expected = (moved(step) - moved(-step)) / (2 * step)

    def total(q, k, v):
        return jnp.sum(jnp.asarray(weights) * attention(q, k, v, MASKS[name], backend=backend))

    grads = jax.grad(total, (0, 1, 2))(*inputs)
    found = sum(np.sum(np.asarray(g) * way) for g, way in zip(grads, ways, strict=True))
    # A sum of 928 products of order 1, whose roundings differ in sign.
    assert found == pytest.approx(expected, abs=GRADIENT_TOLERANCE * 928**0.5)


@pytest.mark.parametrize("backend", GENERAL)
def test_a_query_without_keys_gives_zeros_and_finite_gradients(backend):
    q, k, v = random()
    mask = Mask(kv_valid=jnp.array([[False] * 11, [True] * 11]))

    def total(q, k, v):
        return jnp.sum(attention(q, k, v, mask, backend=backend) ** 2)

    out = attention(q, k, v, mask, backend=backend)
    np.testing.assert_array_equal(out[0], 0)
    for grad in jax.grad(total, (0, 1, 2))(q, k, v):
        assert np.isfinite(grad).all()
        np.testing.assert_array_equal(grad[0], 0)


@pytest.mark.parametrize("mask", [Mask(causal=True), Mask(causal=True, window=100, chunk=250)])
def test_the_chunked_form_equals_the_dense_one_gradients_too(mask):
    q, k, v = random(B=1, T=600, S=600, N=2, K=1, seed=3)

    def run(backend):
        def total(q, k, v):
            out = attention(q, k, v, mask, backend=backend)
            return jnp.sum(jnp.sin(out)), out

        return jax.grad(total, (0, 1, 2), has_aux=True)(q, k, v)

    grads, out = run("xla_chunked")
    expected_grads, expected = run("xla")
    np.testing.assert_allclose(out, expected, atol=TOLERANCE)
    for found, wanted in zip(grads, expected_grads, strict=True):
        np.testing.assert_allclose(found, wanted, atol=GRADIENT_TOLERANCE)


ROWS = jnp.arange(19)[None]
CAUSAL = {
    "causal": Mask(causal=True),
    "window": Mask(causal=True, window=5),
    "chunk": Mask(causal=True, chunk=4),
    "padding": Mask(causal=True, kv_valid=jnp.array([[3], [0]]) <= ROWS),
    "segments": Mask(causal=True, q_segments=ROWS // 7, kv_segments=ROWS // 7),
    "allow": Mask(causal=True, allow=jnp.arange(2 * 19 * 19).reshape(2, 19, 19) % 3 > 0),
}


@pytest.mark.parametrize("name", CAUSAL)
def test_the_triangle_is_the_definition_and_its_gradients_the_dense_forms(name):
    inputs, mask = random(T=19, S=19), CAUSAL[name]
    expected = reference(*inputs, dense(mask, 2, 19, 19))
    np.testing.assert_allclose(
        attention(*inputs, mask, backend="xla_triangle"), expected, atol=TOLERANCE
    )

    def grads(backend):
        def total(q, k, v):
            return jnp.sum(jnp.sin(attention(q, k, v, mask, backend=backend)))

        return jax.grad(total, (0, 1, 2))(*inputs)

    for found, wanted in zip(grads("xla_triangle"), grads("xla"), strict=True):
        np.testing.assert_allclose(found, wanted, atol=GRADIENT_TOLERANCE)


@pytest.mark.parametrize(
    "mask, reason",
    [
        (Mask(), "not causal"),
        (Mask(causal=True, prefix=jnp.array([1, 2])), "not causal"),
        (Mask(causal=True, q_positions=ROWS[:, :9]), "not the same sequence"),
        (Mask(causal=True), "not the same sequence"),  # 9 queries, 11 keys
    ],
)
def test_the_triangle_refuses_what_is_none(mask, reason):
    with pytest.raises(ValueError, match=reason):
        attention(*random(), mask, backend="xla_triangle")


def test_auto_takes_the_triangle_for_causal_sequences_of_some_length():
    def chosen(T, mask):
        q, k = (jax.ShapeDtypeStruct((1, T, n, 8), jnp.float32) for n in (4, 2))
        return choose(Case("cpu", q, k, mask, False, None))

    assert chosen(512, Mask(causal=True)) == "xla_triangle"
    assert chosen(512, Mask()) == chosen(64, Mask(causal=True)) == "xla"
    assert chosen(4096, Mask(causal=True)) == "xla_chunked"


@settings(max_examples=25, deadline=None)
@given(
    st.integers(1, 6), st.integers(1, 6), st.sampled_from([None, 1, 2]),
    st.sampled_from([None, 2, 3]), st.booleans(), st.integers(0, 2**31),
)  # fmt: skip
def test_random_masks_agree_with_the_definition(T, S, window, chunk, causal, seed):
    q, k, v = random(B=1, T=T, S=S, N=2, K=1, H=4, seed=seed)
    valid = np.random.default_rng(seed).random((1, S)) < 0.6
    mask = Mask(causal=causal, window=window, chunk=chunk, kv_valid=jnp.asarray(valid))
    expected = reference(q, k, v, dense(mask, 1, T, S))
    np.testing.assert_allclose(attention(q, k, v, mask), expected, atol=TOLERANCE)


def test_bfloat16_is_computed_in_float32_inside():
    q, k, v = (a.astype(jnp.bfloat16) for a in random())
    expected = reference(q, k, v, np.ones((2, 9, 11), bool))
    # One rounding of probabilities and one of the result, to 8 bits each.
    np.testing.assert_allclose(attention(q, k, v).astype(jnp.float32), expected, atol=1e-2)


def test_auto_takes_the_chunked_form_for_long_sequences_only():
    def case(T, bias=False):
        shape = jax.ShapeDtypeStruct((1, T, 2, 8), jnp.float32)
        return Case("cpu", shape, shape, Mask(causal=True), bias, None)

    assert choose(case(128)) == "xla"
    assert choose(case(4096)) == "xla_chunked"
    assert choose(case(4096, bias=True)) == "xla"


def test_a_named_backend_refuses_with_its_reason():
    q, k, v = random()
    with pytest.raises(ValueError, match="'xla_chunked': an additive bias"):
        attention(q, k, v, bias=jnp.zeros((4, 9, 11)), backend="xla_chunked")


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


def test_masks_of_another_length_are_refused():
    with pytest.raises(ValueError, match="kv_valid has shape"):
        attention(*random(), Mask(kv_valid=jnp.ones((2, 9), bool)))
    with pytest.raises(ValueError, match="positions without a causal"):
        attention(*random(), Mask(q_positions=jnp.zeros((2, 9), int)))
