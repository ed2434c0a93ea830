"""Weights and moments in bfloat16: what rounding keeps, and what it would lose."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from llama_jax.errors import UserError
from llama_jax.layers.linear import Lettered
from llama_jax.optim.optimizer import AdamW, Lion
from llama_jax.optim.precision import rounded, stepped, stored_as

# The mean of n roundings is off by the spacing / sqrt(12 n); five of that.
COUNT = 4096


def test_rounding_at_random_keeps_the_mean_and_what_bfloat16_holds():
    x = jnp.full(COUNT, 1 + 2**-9, jnp.float32)  # a quarter of the way from 1 to its neighbour
    found = rounded(x, jax.random.key(0))
    assert found.dtype == jnp.bfloat16
    assert set(np.asarray(found, np.float32)) == {1.0, 1 + 2**-7}
    spread = 5 * 2**-7 / np.sqrt(12 * COUNT)
    np.testing.assert_allclose(np.mean(np.asarray(found, np.float32)), x[0], atol=spread)
    exact = jnp.array([0.0, -1.5, 3e38, jnp.inf, -jnp.inf, jnp.nan], jnp.float32)
    kept = rounded(exact.astype(jnp.bfloat16).astype(jnp.float32), jax.random.key(1))
    np.testing.assert_array_equal(
        *(np.asarray(x, np.float32) for x in (kept, exact.astype(jnp.bfloat16)))
    )


def test_a_thousand_small_steps_go_as_far_as_in_float32():
    half = {"w": jnp.ones(256, jnp.bfloat16)}
    update = {"w": jnp.full(256, 1e-4, jnp.float32)}
    nearest = half
    for step in range(1000):
        half = stepped(half, update, jax.random.key(step))
        nearest = optax.apply_updates(nearest, update)
    assert np.mean(np.asarray(half["w"], np.float32)) == pytest.approx(1.1, abs=0.005)
    assert np.all(np.asarray(nearest["w"]) == 1)  # which is why


def test_matrices_are_bfloat16_and_vectors_float32():
    boxed = {
        "w": Lettered(jnp.ones((3, 4, 5)), "LDF"),
        "scale": Lettered(jnp.ones((3, 4)), "LD"),
        "b": Lettered(jnp.ones((4, 2)), "NH"),
    }
    kinds = {name: box.value.dtype for name, box in stored_as(boxed, "bfloat16").items()}
    assert kinds == {"w": jnp.bfloat16, "scale": jnp.float32, "b": jnp.float32}


@pytest.mark.parametrize(
    "optimizer", [AdamW(), AdamW(mu_dtype="bfloat16", nu_dtype="bfloat16"), Lion()]
)
def test_moments_are_of_the_dtype_that_is_asked_for_whatever_the_weights_are(optimizer):
    boxed = stored_as({"w": Lettered(jnp.ones((4, 4)), "DF")}, "bfloat16")
    transform = optimizer.build(10, boxed)
    state = transform.init(boxed)
    params = {"w": boxed["w"].value}
    updates, after = transform.update(params, state_of(state), params)
    assert updates["w"].dtype == jnp.float32
    wanted = {getattr(optimizer, name, "float32") for name in ("mu_dtype", "nu_dtype")}
    for tree in (state_of(state), after):
        moments = {str(x.dtype) for x in jax.tree.leaves(tree) if x.ndim}
        assert moments == wanted


def state_of(state):
    """The state without the letters, as a step has it."""
    return nn.meta.unbox(state)


def test_squares_that_bfloat16_would_not_let_fade_are_refused():
    with pytest.raises(UserError, match=r"b2=0.999: .* by 0.1%, .* b2=0.99 or less"):
        AdamW(b2=0.999, nu_dtype="bfloat16")
    with pytest.raises(UserError, match="mu_dtype='half': give float32 or bfloat16"):
        AdamW(mu_dtype="half")
    small = AdamW(nu_dtype="bfloat16")
    boxed = {"w": Lettered(jnp.ones((2, 2)), "DF")}
    direction = small.direction(boxed)
    params = {"w": jnp.ones((2, 2))}
    state = direction.init(params)
    _, state = direction.update({"w": jnp.ones((2, 2))}, state, params)
    seen = [np.asarray(state.nu["w"], np.float32).max()]
    for _ in range(20):
        _, state = direction.update({"w": jnp.zeros((2, 2))}, state, params)
        seen.append(np.asarray(state.nu["w"], np.float32).max())
    assert seen[-1] == pytest.approx(seen[0] * small.b2**20, rel=0.05)
