"""Images and videos: one encoder, three kinds of space-time attention."""

import jax.numpy as jnp
import numpy as np
import pytest

from llama_jax.layers.divided import DividedBlock
from llama_jax.layers.rope import Rope
from llama_jax.layers.stack import Stack
from llama_jax.models.stem import Patches
from llama_jax.models.vision import Factorised, SpaceTime, VisionEncoder

from .small import BLOCK, FFN, D, attention, pixels, start, vision

# float32 rounding of activations of order 1.
TOLERANCE = 1e-5

AXIAL = Rope(100.0, (2, 1, 1))
DIVIDED = SpaceTime(Stack((DividedBlock(attention(AXIAL), attention(AXIAL), FFN),)))
FACTORISED = Factorised(Stack((BLOCK,), 1), Stack((BLOCK,), 1))


def encode(model, x, valid=None):
    return model(x, valid)


def test_an_image_is_a_video_of_one_frame():
    image = pixels(2)
    variables, apply = start(encode, vision().build(), image)
    found, as_video = apply(variables, image), apply(variables, image[:, None])
    np.testing.assert_array_equal(found.x, as_video.x)
    assert found.x.shape == (2, 4, D)


def test_merging_makes_one_token_of_four_patches_in_place():
    found = start(encode, vision(merge=1).build(), pixels(1))
    tokens = found[1](found[0], pixels(1))
    assert tokens.x.shape == (1, 16, D)
    expected = [[0, y, x] for y in range(4) for x in range(4)]
    np.testing.assert_array_equal(tokens.positions[0], expected)
    variables, apply = start(encode, vision(merge=2).build(), pixels(1))
    np.testing.assert_array_equal(
        apply(variables, pixels(1)).positions[0], [[0, 0, 0], [0, 0, 1], [0, 1, 0], [0, 1, 1]]
    )


def test_the_merged_token_holds_the_pixels_of_its_own_corner():
    model = vision(layers=SpaceTime(Stack((BLOCK,), 1)))
    variables, apply = start(encode, model.build(), pixels(1))
    # Without blocks' mixing: zero the value projection, so attention adds nothing.
    variables["params"]["stack"]["layers"]["block_0"]["attn"]["v"]["w"] *= 0
    changed = pixels(1).at[0, :8, 8:].set(0)  # top right
    difference = np.abs(apply(variables, pixels(1)).x - apply(variables, changed).x).max(-1)[0]
    np.testing.assert_array_equal(difference > 1e-4, [False, True, False, False])


@pytest.mark.parametrize("tubelet", [1, 2])
def test_tubelets_cut_time(tubelet):
    video = pixels(2, 4)
    variables, apply = start(encode, vision(stem=Patches(4, tubelet)).build(), video)
    assert apply(variables, video).x.shape == (2, 4 * 4 // tubelet, D)


def test_an_odd_frame_is_repeated_to_fill_its_tubelet():
    video = pixels(1, 3)
    variables, apply = start(encode, vision(stem=Patches(4, 2)).build(), video)
    filled = jnp.concatenate([video, video[:, -1:]], axis=1)
    np.testing.assert_array_equal(apply(variables, video).x, apply(variables, filled).x)


@pytest.mark.parametrize("layers", [DIVIDED, FACTORISED], ids=["divided", "factorised"])
def test_space_and_time_are_seen_one_after_the_other(layers):
    video = pixels(1, 3)
    variables, apply = start(encode, vision(layers=layers, merge=1).build(), video)
    found = apply(variables, video)
    assert found.x.shape == (1, 48, D) and np.isfinite(found.x).all()
    changed = apply(variables, video.at[0, 0].set(0))  # the first frame is seen from the last
    assert np.abs(found.x - changed.x)[0, 32:].max() > 1e-4


def test_divided_attention_without_time_treats_frames_alone():
    video = pixels(1, 2)
    variables, apply = start(encode, vision(layers=DIVIDED, merge=1, positions=None).build(), video)
    variables["params"]["stack"]["layers"]["block_0"]["temporal"]["o"]["w"] *= 0
    both = apply(variables, video).x
    for t in range(2):
        alone = apply(variables, video[:, t]).x
        np.testing.assert_allclose(both[:, 16 * t : 16 * t + 16], alone, atol=TOLERANCE)


def test_factorised_space_does_not_mix_frames_before_time_does():
    video = pixels(1, 2)
    variables, apply = start(
        encode, vision(layers=FACTORISED, merge=1, positions=None).build(), video
    )
    variables["params"]["time"]["layers"]["block_0"]["attn"]["o"]["w"] *= 0
    both = apply(variables, video).x
    np.testing.assert_allclose(both[:, :16], apply(variables, video[:, 0]).x, atol=TOLERANCE)


def test_without_learned_positions_a_shifted_image_gives_the_same_tokens_shifted():
    """Rotary positions are relative: on an even picture every place looks the same."""
    model = vision(merge=1, positions=None, layers=SpaceTime(Stack((BLOCK,), 1)))
    variables, apply = start(encode, model.build(), pixels(1))
    plain = apply(variables, jnp.zeros_like(pixels(1)))
    np.testing.assert_allclose(
        plain.x, np.broadcast_to(plain.x[:, :1], plain.x.shape), atol=TOLERANCE
    )


def test_bytes_and_floats_mean_the_same():
    image = pixels(1)
    variables, apply = start(encode, vision().build(), image)
    floats = image.astype(jnp.float32) / 127.5 - 1
    np.testing.assert_allclose(
        apply(variables, image).x, apply(variables, floats).x, atol=TOLERANCE
    )


def test_sides_that_patches_do_not_divide_are_refused():
    with pytest.raises(ValueError, match="resize it to multiples of 8"):
        start(encode, vision().build(), jnp.zeros((1, 12, 16, 3)))


def test_a_missing_image_has_no_valid_token():
    variables, apply = start(encode, vision().build(), pixels(2))
    found = apply(variables, pixels(2), jnp.array([True, False]))
    np.testing.assert_array_equal(found.valid, [[True] * 4, [False] * 4])


def test_configs_are_hashable():
    assert hash(vision()) == hash(vision())
    assert isinstance(vision(), VisionEncoder)
