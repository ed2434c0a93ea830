"""Stems: the convolution as a product equals XLA's convolution; tubelets join frames."""

import jax
import numpy as np
import pytest

from llama_jax.models.stem import Convolutions, Patches, neighbours

from .small import start, vision

# float32 sums of 27 terms of order 1.
TOLERANCE = 1e-5


def random(*shape):
    return jax.device_put(np.random.default_rng(0).normal(size=shape).astype(np.float32))


@pytest.mark.parametrize("side", [8, 7])
def test_a_product_over_neighbours_equals_a_convolution_of_stride_two(side):
    x, w = random(2, 1, side, side, 3), random(27, 5)
    found = neighbours(x)[:, 0] @ w
    expected = jax.lax.conv_general_dilated(
        x[:, 0], w.reshape(3, 3, 3, 5), (2, 2), ((1, 1), (1, 1)),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )  # fmt: skip
    np.testing.assert_allclose(found, expected, atol=TOLERANCE)


@pytest.mark.parametrize("stem", [Patches(8), Convolutions((4, 6))])
def test_a_stem_gives_one_vector_for_each_square_of_its_size(stem):
    video = random(2, 1, 16, 24, 3)
    variables, apply = start(lambda m, x: m(x, 10), stem.build(), video)
    assert stem.size == 8
    assert apply(variables, video).shape == (2, 1, 2, 3, 10)


@pytest.mark.parametrize("stem", [Patches(8, tubelet=2), Convolutions((4, 6), tubelet=2)])
def test_a_tubelet_joins_its_own_frames(stem):
    video = random(1, 4, 16, 16, 3)
    variables, apply = start(lambda m, x: m(x, 10), stem.build(), video)
    changed = apply(variables, video.at[:, 3].set(0)) != apply(variables, video)
    assert changed.shape == (1, 2, 2, 2, 10)
    assert not changed[:, 0].any() and changed[:, 1].any()


def test_an_encoder_takes_either_stem():
    pixels = random(2, 16, 16, 3)
    encoder = vision(stem=Convolutions((4,)), merge=1)
    variables, apply = start(lambda m, x: m(x), encoder.build(), pixels)
    assert apply(variables, pixels).x.shape == (2, 16, 16)
