"""What Llama 4's attention has of its own: a norm without a scale, queries that grow."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from llama_jax.errors import UserError
from llama_jax.layers.attention import TemperatureTuning
from llama_jax.layers.norm import BareNorm
from llama_jax.layers.rope import Rope
from tests.models.small import attention

X = np.random.default_rng(0).normal(size=(1, 5, 2, 8)).astype(np.float32)
AT = jnp.arange(5)[None, :, None] * 1000


def test_a_norm_without_a_scale_is_the_same_before_and_after_the_rotation():
    norm, rope = BareNorm(1e-5), Rope()
    before = rope.turn(norm.build().apply({}, X), AT)
    after = norm.build().apply({}, rope.turn(jnp.array(X), AT))
    np.testing.assert_allclose(before, after, atol=1e-6)  # float32
    np.testing.assert_allclose(np.mean(np.square(after), -1), 1, atol=1e-4)  # eps


def test_it_has_no_weights():
    made = attention(qk_norm=BareNorm()).build()
    x = jnp.zeros((1, 3, 16))
    shapes = jax.eval_shape(
        lambda: made.init(jax.random.key(0), x, AT[:, :3], method="keys")["params"]
    )
    assert set(shapes) == {"k", "v"}


def test_queries_grow_by_the_steps_of_their_positions():
    tuning = TemperatureTuning(floor=4, growth=0.1)
    found = tuning.scaled(jnp.ones((1, 9, 1, 2)), jnp.arange(9)[None, :, None])[0, :, 0, 0]
    once, twice = 1 + 0.1 * np.log(2), 1 + 0.1 * np.log(3)
    np.testing.assert_allclose(found, [1, 1, 1, once, once, once, once, twice, twice], rtol=1e-6)


def test_numbers_that_make_no_steps_are_refused():
    with pytest.raises(UserError, match="floor=0"):
        TemperatureTuning(floor=0)
    with pytest.raises(UserError, match="growth=nan"):
        TemperatureTuning(growth=float("nan"))
