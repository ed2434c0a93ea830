"""Rotary embeddings for longer contexts, against their formulas in float64."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from llama_jax.layers.rope import Rope, rotate
from llama_jax.layers.rope_scaled import DynamicRope, LinearRope, LongRope, YarnRope

# Of angles of up to some radians: a few roundings of float32, relative.
TOLERANCE = 1e-6
H, N = 16, 8  # a head and its pairs
E = np.arange(N) / N


def frequencies(rope, length):
    """Radians a position of each pair in a sequence of so many tokens, as `angles` has them."""
    positions = jnp.array([[[1], [length - 1]]])
    return np.asarray(jax.jit(lambda p: rope.angles(p, H))(positions))[0, 0]


def near(found, expected):
    np.testing.assert_allclose(found, expected, rtol=TOLERANCE)


def test_a_linear_one_divides_positions():
    near(frequencies(LinearRope(1e4, factor=4.0), 9), 1e4**-E / 4)


def test_a_dynamic_one_is_plain_until_its_context_ends():
    rope = DynamicRope(1e4, factor=2.0, original=64)
    assert np.array_equal(frequencies(rope, 64), Rope(1e4).frequencies(H))
    assert rope.steady == 64 and Rope().steady is None


def test_a_dynamic_one_has_a_base_that_grows_with_the_text():
    rope = DynamicRope(1e4, factor=2.0, original=64)
    for length in (65, 100, 6400):
        theta = 1e4 * (2 * length / 64 - 1) ** (H / (H - 2))
        near(frequencies(rope, length), theta**-E)


def test_each_row_is_turned_by_its_own_length():
    long = LongRope(1e4, short=(1.0,) * N, long=(2.0,) * N, original=8)
    for rope in (long, DynamicRope(1e4, factor=2.0, original=8)):
        both = jnp.array([[[0], [1], [2]], [[0], [1], [50]]])
        alone = [rope.angles(both[i : i + 1], H)[0] for i in range(2)]
        np.testing.assert_array_equal(rope.angles(both, H), alone)
        assert not np.array_equal(alone[0][1], alone[1][1])


def test_yarn_keeps_short_waves_stretches_long_ones_and_mixes_between():
    """With theta 10,000 and 1,024 positions pair i holds 1024 / (2 pi 10000^(i/8)) waves."""
    rope = YarnRope(1e4, factor=8.0, original=1024, truncate=False)
    low, high = (N * math.log(1024 / (w * 2 * math.pi)) / math.log(1e4) for w in (32, 1))
    assert 1 < low < 2 < 4 < high < 5
    share = np.clip((np.arange(N) - low) / (high - low), 0, 1)
    f = 1e4**-E
    found = frequencies(rope, 9)
    near(found, f * (1 - share) + f / 8 * share)
    near(found[:2], f[:2])
    near(found[5:], f[5:] / 8)
    share = np.clip((np.arange(N) - 1) / (5 - 1), 0, 1)  # floor and ceil
    near(frequencies(YarnRope(1e4, factor=8.0, original=1024), 9), f * (1 - share) + f / 8 * share)


def test_longrope_has_a_divisor_for_each_pair_and_others_for_long_texts():
    short, long = tuple(1 + E), tuple(1 + 9 * E)
    rope = LongRope(1e4, short=short, long=long, original=64)
    near(frequencies(rope, 64), 1e4**-E / short)
    near(frequencies(rope, 65), 1e4**-E / long)


def test_a_gain_multiplies_queries_and_keys():
    assert YarnRope(factor=16.0).gain == 0.1 * math.log(16.0) + 1
    assert YarnRope(factor=16.0, attention=1.5).gain == 1.5
    assert LinearRope(factor=4.0).gain == DynamicRope().gain == 1
    x = jnp.asarray(np.random.default_rng(0).normal(size=(1, 3, 2, H)), jnp.float32)
    positions = jnp.arange(3)[None, :, None]
    rope = YarnRope(factor=16.0, attention=1.5)
    plain = rotate(x, rope.angles(positions, H))
    np.testing.assert_allclose(rope.turn(x, positions), 1.5 * plain, atol=TOLERANCE)


def test_it_is_differentiated_recomputed_and_scanned_as_any_other():
    rope = DynamicRope(1e4, factor=2.0, original=4)
    x, positions = jnp.ones((1, 9, 1, H)), jnp.arange(9)[None, :, None]
    turn = jax.checkpoint(lambda x: rope.turn(x, positions))

    @jax.jit
    @jax.grad
    def slope(x):
        return jax.lax.scan(lambda y, _: (turn(y), None), x, None, length=2)[0][0, 8, 0, 0]

    # Twice the same turn is a turn by twice the angle, whose transpose is the one back.
    back = rotate(jnp.zeros((1, 9, 1, H)).at[0, 8, 0, 0].set(1.0), -2 * rope.angles(positions, H))
    np.testing.assert_allclose(slope(x), back, atol=TOLERANCE)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: LinearRope(factor=0.5), "linear rope: factor=0.5; 1 or more"),
        (lambda: DynamicRope(factor=float("nan")), "factor=nan of DynamicRope is no number"),
        (lambda: YarnRope(factor=2.0, fast=1.0, slow=2.0), "slow <= fast"),
        (lambda: YarnRope(factor=2.0, attention=-1.0), "yarn rope: -1.0 is among its factors"),
        (lambda: YarnRope(split=(1, 1)), "one axis"),
        (lambda: LongRope(short=(1.0,), long=(1.0, 2.0)), "1 short and 2 long factors"),
        (lambda: LongRope(short=(1.0,), long=(0.0,)), "longrope rope: 0.0 is among"),
        (lambda: LongRope(short=(1.0,), long=(2.0,)).pairs(16), "1 factors for a head of 16; 8"),
    ],
)
def test_numbers_that_cannot_be_are_refused(make, said):
    with pytest.raises(ValueError, match=said):
        make()
