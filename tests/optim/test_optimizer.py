import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from llama_jax.layers.linear import Lettered
from llama_jax.optim.optimizer import WSD, AdamW, Constant, Cosine, decay_mask, decays
from tests.train.tiny import Net


def rates(schedule, steps, rate=0.1):
    return np.array([schedule.build(rate, steps)(step) for step in range(steps + 1)])


def test_cosine_is_the_warmup_cosine_of_optax():
    expected = optax.warmup_cosine_decay_schedule(0.0, 0.1, 10, 50, end_value=0.02)
    expected = np.array([expected(step) for step in range(51)])
    found = rates(Cosine(warmup=10, floor=0.2, begin=0), 50)
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    found = rates(Cosine(warmup=10, floor=0.2), 50)
    np.testing.assert_allclose(found[:10], expected[1:11], rtol=1e-6)
    np.testing.assert_allclose(found[10:], expected[10:], rtol=1e-6)


def test_wsd_rises_holds_and_falls():
    found = rates(WSD(warmup=4, decay_share=0.25, floor=0.1), 40)
    np.testing.assert_allclose(found[:4], [0.025, 0.05, 0.075, 0.1], rtol=1e-6)
    np.testing.assert_allclose(found[3:31], 0.1, rtol=1e-6)
    np.testing.assert_allclose(found[30:41], np.linspace(0.1, 0.01, 11), rtol=1e-5)


def test_the_stable_part_of_wsd_does_not_know_how_long_the_run_is():
    schedule = WSD(warmup=4, decay_share=0.2)
    np.testing.assert_array_equal(rates(schedule, 50)[:40], rates(schedule, 200)[:40])


def test_constant_warms_up_if_asked():
    np.testing.assert_allclose(rates(Constant(), 3), 0.1, rtol=1e-6)
    np.testing.assert_allclose(rates(Constant(warmup=2), 3), [0.05, 0.1, 0.1, 0.1], rtol=1e-6)


@pytest.mark.parametrize("schedule", [Cosine(warmup=100), WSD(warmup=100), Constant(warmup=100)])
def test_a_run_shorter_than_its_warmup_stays_in_it(schedule):
    np.testing.assert_allclose(rates(schedule, 10), 0.1 * np.arange(1, 12) / 100, rtol=1e-5)


@pytest.mark.parametrize(
    ("name", "letters", "expected"),
    [
        ("w", "DNH", True),
        ("w", "VD", True),
        ("w", "LDF", True),
        ("scale", "D", False),
        ("scale", "LD", False),  # the layer axis makes no matrix of a vector
        ("b", "F", False),
        ("b", "NH", False),  # a bias of two letters is still a bias
        ("gate", "", False),
    ],
)
def test_matrices_decay_and_scales_and_biases_do_not(name, letters, expected):
    assert decays(name, letters) is expected


def test_decay_moves_exactly_the_weights_of_the_mask():
    ids = jnp.zeros((1, 2), jnp.int32)
    boxed = jax.eval_shape(lambda: Net().init(jax.random.key(0), ids))["params"]
    mask = decay_mask(boxed)
    assert mask == {
        "embed": {"w": True},
        "up": {"w": True, "b": False},
        "down": {"w": True},
        "norm": {"scale": False},
    }
    params = jax.tree.map(lambda x: jnp.ones(x.shape), nn.meta.unbox(boxed))
    transform = AdamW(rate=0.5, schedule=Constant(), weight_decay=0.2).build(10, boxed)
    zero = jax.tree.map(jnp.zeros_like, params)
    updates, _ = jax.jit(transform.update)(zero, jax.jit(transform.init)(params), params)
    moved = jax.tree.map(lambda u: float(u.reshape(-1)[0]), updates)
    expected = jax.tree.map(lambda decayed: -0.5 * 0.2 if decayed else 0.0, mask)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-8), moved, expected)


def test_a_weight_without_letters_is_named():
    with pytest.raises(TypeError, match="a/w has no letters"):
        decay_mask({"a": {"w": jnp.ones(3)}, "b": Lettered(jnp.ones(3), "D")})


def test_gradients_are_clipped_by_their_common_norm():
    boxed = {"w": Lettered(jnp.zeros((2, 2)), "DF")}
    params, grads = {"w": jnp.zeros((2, 2))}, {"w": jnp.full((2, 2), 100.0)}
    for clip, seen in ((1.0, 0.5), (None, 100.0)):
        transform = AdamW(schedule=Constant(), clip=clip, b1=0.0).build(10, boxed)
        _, state = transform.update(grads, transform.init(params), params)
        moment = next(s.mu["w"] for s in state if isinstance(s, optax.ScaleByAdamState))
        np.testing.assert_allclose(moment, seen, rtol=1e-6)
