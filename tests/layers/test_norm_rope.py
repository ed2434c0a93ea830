"""Norms and rotary embedding against float64."""

import jax.numpy as jnp
import numpy as np
import pytest

from llama_jax.layers.norm import LayerNorm, RMSNorm
from llama_jax.layers.rope import Rope, rotate

# float32 rounding of values of order 1.
TOLERANCE = 1e-6


def random(*shape):
    return np.random.default_rng(0).normal(size=shape)


def test_rms_norm_divides_by_the_root_of_the_mean_square():
    x, scale = random(2, 3, 8), random(8)
    found = (
        RMSNorm(1e-5)
        .build()
        .apply({"params": {"scale": scale.astype(np.float32)}}, jnp.asarray(x, jnp.float32))
    )
    expected = x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-5) * scale
    np.testing.assert_allclose(found, expected, atol=TOLERANCE, rtol=TOLERANCE)


def test_layer_norm_has_mean_zero_and_variance_one():
    x, scale, bias = random(2, 3, 8), random(8), random(8)
    params = {"scale": scale.astype(np.float32), "bias": bias.astype(np.float32)}
    found = LayerNorm(1e-5).build().apply({"params": params}, jnp.asarray(x, jnp.float32))
    centred = x - x.mean(-1, keepdims=True)
    expected = centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-5) * scale + bias
    np.testing.assert_allclose(found, expected, atol=2 * TOLERANCE, rtol=TOLERANCE)


def test_norms_of_bfloat16_have_float32_statistics():
    x = jnp.full((1, 4), 300.0, jnp.bfloat16)  # 300^2 = 90,000 needs 17 bits
    found = RMSNorm().build().apply({"params": {"scale": jnp.ones(4)}}, x)
    np.testing.assert_allclose(found.astype(jnp.float32), 1.0, atol=4e-3)  # bfloat16 of 1


def rotate64(x, positions, theta, pairs):
    """The definition: complex multiplication in float64, for one position axis after the other."""
    half = x.shape[-1] // 2
    z = x[..., :half] + 1j * x[..., half:]
    start = 0
    for axis, n in enumerate(pairs):
        frequencies = theta ** -(np.arange(n) / max(n, 1))
        angles = positions[..., axis][:, :, None, None] * frequencies
        z[..., start : start + n] *= np.exp(1j * angles)
        start += n
    return np.concatenate([z.real, z.imag], -1)


@pytest.mark.parametrize(
    ("split", "pairs"), [((1,), (16,)), ((2, 3, 3), (4, 6, 6)), ((0, 1, 1), (0, 8, 8))]
)
def test_rotation_equals_complex_multiplication_in_float64(split, pairs):
    rope = Rope(theta=100.0, split=split)
    x = random(2, 5, 3, 32)
    positions = np.random.default_rng(1).integers(0, 8, (2, 5, 3))
    found = rotate(jnp.asarray(x, jnp.float32), rope.angles(jnp.asarray(positions), 32))
    np.testing.assert_allclose(found, rotate64(x.copy(), positions, 100.0, pairs), atol=2e-6)


@pytest.mark.parametrize("position", [0, 1, 2047, 8191])
def test_tables_agree_with_float64_at_far_positions(position):
    """A float32 angle near 8,191 is off by at most half a unit in the last place: 4.9e-4 / 2."""
    rope = Rope(theta=10_000.0)
    exact = position * 10_000.0 ** -(np.arange(32) / 32)
    found = rope.angles(jnp.full((1, 1, 1), position), 64)[0, 0]
    np.testing.assert_allclose(found, exact, rtol=2e-7, atol=1e-6)
    np.testing.assert_allclose(np.cos(np.float64(found)), np.cos(exact), atol=5e-4)


def test_scores_depend_on_the_distance_alone():
    rope = Rope()
    q, k = (jnp.asarray(random(1, 1, 1, 16)[:, :, :, :], jnp.float32) for _ in range(2))

    def score(i, j):
        turned = [rotate(x, rope.angles(jnp.full((1, 1, 1), p), 16)) for x, p in ((q, i), (k, j))]
        return float(jnp.sum(turned[0] * turned[1]))

    assert score(3, 1) == pytest.approx(score(103, 101), abs=1e-4)
    assert abs(score(3, 1) - score(3, 2)) > 1e-3


def test_angles_stay_float32_for_bfloat16_inputs():
    rope = Rope()
    angles = rope.angles(jnp.array([[[257]]]), 8)
    assert angles.dtype == jnp.float32
    assert angles[0, 0, 0] == 257  # bfloat16 would say 256


def test_a_head_that_the_split_does_not_divide_is_refused():
    with pytest.raises(ValueError, match="multiple of 16"):
        Rope(split=(2, 3, 3)).frequencies(24)


def test_too_few_position_axes_are_refused():
    with pytest.raises(ValueError, match="needs 3 position axes"):
        Rope(split=(2, 3, 3)).angles(jnp.zeros((1, 4, 1), int), 16)
