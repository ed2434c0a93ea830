"""Pictures to words and back, alone and as a part of the seed's system."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from llama_jax.errors import UserError
from llama_jax.models.fsq import FSQ
from llama_jax.models.image_tokenizer import ImageTokenizer, around, signed
from llama_jax.models.stem import Convolutions
from tests.models.drawer import VOCAB, drawer

SMALL = ImageTokenizer(8, Convolutions((4,)), FSQ((5, 3)), depth=1)
ULPS = 1e-5  # float32 sums in two orders


@functools.cache
def made():
    module = SMALL.build()
    pixels = np.random.default_rng(0).integers(0, 256, (2, 16, 16, 3), np.uint8)
    params = module.init(jax.random.key(0), pixels, method="reconstruct")
    return module, params, pixels


def test_pixels_come_back_in_the_size_that_they_had():
    module, params, pixels = made()
    assert module.apply(params, pixels, method="reconstruct").shape == pixels.shape


def test_words_paint_what_the_picture_is_reconstructed_as():
    module, params, pixels = made()
    words = module.apply(params, pixels, method="codes")
    assert words.shape == (2, 16) and words.dtype == jnp.int32
    assert 0 <= words.min() and words.max() < SMALL.codes == 15 and len(np.unique(words)) > 1
    painted = module.apply(params, words, method="paint")
    whole = module.apply(params, pixels, method="reconstruct")
    assert np.allclose(painted, np.clip(whole, -1, 1), atol=ULPS)


def test_words_are_counted_row_by_row():
    module, params, pixels = made()
    levels = module.apply(params, pixels, method="encode")
    words = module.apply(params, pixels, method="codes")
    assert np.array_equal(words[:, 5], SMALL.quantise.index(levels[:, 1, 1]))


def test_no_gradient_goes_through_words():
    module, params, pixels = made()
    floats = signed(jnp.asarray(pixels))

    def summed(x):
        return jnp.sum(SMALL.quantise.levels_of(module.apply(params, x, method="codes")))

    assert not np.any(jax.grad(summed)(floats))


def test_a_run_that_reads_words_alone_has_the_weights_to_paint_them():
    module, params, pixels = made()
    others = jax.eval_shape(
        functools.partial(module.init, method="codes"), jax.random.key(0), pixels
    )
    assert jax.tree.structure(others) == jax.tree.structure(params)


def test_around_is_a_convolution_of_three_by_three():
    x = np.random.default_rng(1).normal(size=(2, 5, 4, 3)).astype(np.float32)
    w = np.random.default_rng(2).normal(size=(3, 3, 3, 6)).astype(np.float32)
    dimensions = ("NHWC", "HWIO", "NHWC")
    expected = jax.lax.conv_general_dilated(x, w, (1, 1), "SAME", dimension_numbers=dimensions)
    found = around(jnp.asarray(x)) @ w.reshape(27, 6)
    assert np.allclose(found, expected, atol=ULPS)


def test_sides_that_are_not_cut_evenly_are_refused():
    module, params, _ = made()
    with pytest.raises(UserError, match="18 x 18 pixels is not cut evenly into places of 4 x 4"):
        module.apply(params, np.zeros((1, 18, 18, 3), np.uint8), method="codes")


def test_words_of_pictures_stand_behind_those_of_the_text():
    model, params, pixels = drawer()
    ids = np.asarray(model.apply(params, pixels, method="words_of"))
    codes = model.config.pictures.codes
    assert VOCAB <= ids.min() and ids.max() < VOCAB + codes
    assert params["params"]["embed"]["w"].shape[0] == VOCAB + codes
    painted = model.apply(params, ids, method="paint")
    assert np.allclose(
        painted, np.clip(model.apply(params, pixels, method="reconstruct"), -1, 1), atol=ULPS
    )


def test_words_of_pictures_need_the_shared_table():
    config = drawer()[0].config
    with pytest.raises(UserError, match="rows of the shared table"):
        dataclasses.replace(config, shared=False)
    with pytest.raises(UserError, match="rows of the shared table"):
        dataclasses.replace(config, decoder=dataclasses.replace(config.decoder, tied=False))


def test_a_model_without_words_for_pictures_says_so():
    model, params, pixels = drawer()
    plain = dataclasses.replace(model.config, pictures=None).build()
    with pytest.raises(UserError, match=r"give Multimodal\(pictures=ImageTokenizer\(\)\)"):
        plain.apply(params, pixels, method="words_of")
