"""A sequence split over devices gives what one device gives, and each holds a part of it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from llama_jax.axes import using
from llama_jax.kernels.attention.api import attention
from llama_jax.kernels.attention.mask import Mask
from llama_jax.kernels.backends import recording

# float32 sums of some tens of terms of order 1, in another order.
TOLERANCE = 1e-5
B, T, S = 2, 64, 32


def documents(length):
    rng = np.random.default_rng(2)
    return jnp.asarray(np.sort(rng.integers(0, 4, (B, length)), axis=1))


MASKS = {
    "all": (Mask(), T),
    "causal": (Mask(causal=True), T),
    "window": (Mask(causal=True, window=11), T),
    "chunk": (Mask(causal=True, chunk=24), T),
    "prefix": (Mask(causal=True, prefix=jnp.array([20, 0])), T),
    "packed": (Mask(causal=True, q_segments=documents(T), kv_segments=documents(T)), T),
    "padding": (Mask(causal=True, kv_valid=jnp.arange(T)[None] >= jnp.array([[9], [T]])), T),
    "tiles": (Mask(allow=jnp.asarray(np.random.default_rng(1).random((B, T, S)) < 0.3)), S),
    "cross": (Mask(kv_valid=jnp.arange(S)[None] < jnp.array([[9], [S]])), S),
}


def inputs(S, T=T, N=4, K=2, H=16):
    rng = np.random.default_rng(0)
    shapes = (B, T, N, H), (B, S, K, H), (B, S, K, H)
    return [jnp.asarray(rng.normal(size=shape), jnp.float32) for shape in shapes]


def both(mask, arrays, backend):
    def total(q, k, v):
        out = attention(q, k, v, mask, backend=backend)
        return jnp.sum(jnp.sin(out)), out

    return jax.jit(jax.grad(total, (0, 1, 2), has_aux=True))(*arrays)


@pytest.mark.parametrize("name", MASKS)
def test_eight_devices_agree_with_one_gradients_too(name, mesh):
    mask, keys = MASKS[name]
    arrays = inputs(keys)
    expected = both(mask, arrays, "xla")
    with using(mesh(8, context=8, data=1)):
        found = both(mask, arrays, "ring")
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=TOLERANCE), found, expected)


@pytest.mark.parametrize("name", ["causal", "packed"])
def test_batch_heads_and_sequence_are_split_at_once(name, mesh):
    mask, keys = MASKS[name]
    arrays = inputs(keys)
    expected = both(mask, arrays, "xla")
    with using(mesh(8, data=2, tensor=2, context=2)), recording() as receipts:
        found = both(mask, arrays, "auto")
    assert {r.backend for r in receipts if r.kind == "attention"} == {"ring"}
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=TOLERANCE), found, expected)


def test_a_device_s_memory_falls_by_about_the_number_of_devices(mesh):
    def memory(devices):
        grid = mesh(devices, context=devices, data=1)
        spec = NamedSharding(grid, P(None, "context"))
        q, k = (jax.ShapeDtypeStruct((1, 4096, n, 64), jnp.float32, sharding=spec) for n in (4, 2))
        with using(grid):

            def total(q, k, v):
                return jnp.sum(attention(q, k, v, Mask(causal=True)) ** 2)

            compiled = jax.jit(jax.grad(total, (0, 1, 2))).lower(q, k, k).compile()
        stats = compiled.memory_analysis()
        return stats.argument_size_in_bytes + stats.temp_size_in_bytes

    # Also a constant: the block of scores of one step.
    assert memory(8) < memory(1) / 4


def test_a_length_that_cannot_be_dealt_out_is_refused_by_number(mesh):
    arrays = inputs(56, T=56)
    with using(mesh(8, context=8, data=1)), pytest.raises(ValueError, match="multiples of 16"):
        attention(*arrays, Mask(causal=True), backend="ring")
