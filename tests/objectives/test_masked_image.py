"""Masked image modelling: what is hidden, what is predicted, and against what."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from llama_jax.errors import UserError
from llama_jax.layers.positions import Learned
from llama_jax.models.pixels import PixelModule, normalised, patches
from llama_jax.models.stem import Convolutions, Patches
from llama_jax.objectives import MIM, losses
from llama_jax.objectives.masked_image import draw
from tests.models.small import multimodal, pixels, start, vision

# Means of some hundred float32 numbers of size one.
TOLERANCE = 1e-5
KEY = jax.random.key(0)
STEMS = {
    "patches": Patches(4),
    "tubelets": Patches(4, tubelet=2),
    "convolutions": Convolutions((6,)),
}


def loss_of(objective, fields, **parts):
    """The loss of random parameters, and these."""
    model = multimodal(**parts).build()
    compute = losses({"mim": objective})
    variables, apply = start(compute, model, {"pictures": fields}, KEY)
    return variables, lambda v, fields, key=KEY: apply(v, {"pictures": fields}, key)[1]["mim"]


def test_every_picture_hides_the_same_number_of_patches_and_not_the_same_ones():
    hidden = np.asarray(draw(KEY, 50, 16, 0.6))
    assert (hidden.sum(1) == 10).all() and 0.4 < hidden.mean(0).min() < hidden.mean(0).max() < 0.8
    assert np.asarray(draw(KEY, 3, 4, 0.99)).sum(1).tolist() == [3, 3, 3]
    assert np.asarray(draw(KEY, 3, 4, 0.01)).sum(1).tolist() == [1, 1, 1]


def test_patches_come_in_the_order_of_the_tokens_and_have_mean_0_and_variance_1():
    video = np.random.default_rng(0).normal(2, 3, (2, 2, 8, 8, 3)).astype(np.float32)
    found = patches(video, 2, 4)
    np.testing.assert_array_equal(found[1, 1], video[1, :, :4, 4:].reshape(-1))  # top right
    x = normalised(found)
    np.testing.assert_allclose(jnp.mean(x, -1), 0, atol=TOLERANCE)
    np.testing.assert_allclose(jnp.var(x, -1, ddof=1), 1, atol=TOLERANCE)
    np.testing.assert_array_equal(normalised(jnp.ones((1, 1, 12))), jnp.zeros((1, 1, 12)))


@pytest.mark.parametrize("stem", STEMS.values(), ids=[*STEMS])
@pytest.mark.parametrize("merge", [1, 2])
def test_what_is_hidden_reaches_no_token(stem, merge):
    encoder = vision(stem=stem, merge=merge, positions=Learned((4, 4, 4)))
    frames, side = encoder.patch
    video = pixels(1, frames).astype(jnp.float32) / 127.5 - 1
    hidden = jnp.arange((16 // side) ** 2)[None] % 2 == 0
    noise = jnp.where(hidden[..., None], 7.0, patches(video, frames, side))
    head = PixelModule(encoder)

    def hide(module, video):
        return module.hide(video, hidden)

    variables, apply = start(hide, head, video)
    covered = apply(variables, video)
    again = patches(covered, frames, side)
    assert covered.shape == video.shape
    shown = np.flatnonzero(~hidden[0])
    np.testing.assert_array_equal(again[0, shown], patches(video, frames, side)[0, shown])
    cover = variables["params"]["cover"]["value"]
    np.testing.assert_array_equal(again[0, 0], getattr(cover, "value", cover))
    other = nn.apply(hide, head)(variables, _joined(noise, video.shape, frames, side))
    np.testing.assert_array_equal(covered, other)


def _joined(x, shape, frames, side):
    """The video of these patches, one after another."""
    video = np.zeros(shape, np.float32)
    n = shape[3] // side
    for i in range(x.shape[1]):
        y, z = i // n * side, i % n * side
        video[:, :, y : y + side, z : z + side] = np.reshape(x[:, i], (1, frames, side, side, 3))
    return jnp.asarray(video)


@pytest.mark.parametrize("stem", STEMS.values(), ids=[*STEMS])
@pytest.mark.parametrize("source", ["image", "video"])
def test_the_loss_and_its_baseline_are_what_they_say(stem, source):
    x = pixels(3) if source == "image" else pixels(3, 3)  # three frames fill no tubelets of two
    variables, compute = loss_of(
        MIM("pictures", source=source, normalise=False), {source: x}, vision=vision(stem=stem)
    )
    loss = compute(variables, {source: x})
    tokens = 4 * -(-(3 if source == "video" else 1) // stem.tubelet)
    hidden = round(0.6 * tokens)
    assert float(loss.count) == 3 * hidden == float(loss.metrics["mean"][1])
    # A head of zeros predicts grey, so the loss is the mean square of the hidden pixels: all of
    # them one colour makes it that colour's, and the mean of the visible ones is right.
    out = variables["params"]["pixel_head"]["out"]
    variables["params"]["pixel_head"]["out"] = jax.tree.map(jnp.zeros_like, out)
    flat = compute(variables, {source: jnp.full_like(x, 255)})
    np.testing.assert_allclose(flat.sum / flat.count, 1, rtol=TOLERANCE)
    np.testing.assert_allclose(flat.metrics["mean"][0], 0, atol=TOLERANCE)


def test_absent_pictures_and_rows_that_fill_a_batch_do_not_count():
    x = pixels(4)
    texts = {"text": jnp.ones((8, 3), jnp.int32), "image": x}  # two texts share a picture
    objective = MIM("pictures")
    variables, compute = loss_of(objective, texts)
    whole = compute(variables, texts)
    there = jnp.array([True, True, False, True])
    rows = jnp.array([1, 1, 1, 1, 1, 1, 0, 0])
    some = compute(variables, texts | {"image_valid": there, "row_valid": rows})
    assert float(whole.count) == 2 * float(some.count) == 8
    noise = jnp.where((there & (jnp.arange(4) < 3))[:, None, None, None], x, 9)
    same = compute(variables, texts | {"image": noise, "image_valid": there, "row_valid": rows})
    np.testing.assert_allclose(some.sum, same.sum, rtol=TOLERANCE)


def test_a_picture_can_be_learned_by_heart():
    x = pixels(1)
    variables, compute = loss_of(MIM("pictures", rate=0.5), {"image": x})

    @jax.jit
    def step(v):
        value, grad = jax.value_and_grad(lambda v: compute(v, {"image": x}).sum)(v)
        return jax.tree.map(lambda a, g: a - 0.01 * jnp.sign(g), v, grad), value

    variables, before = step(variables)
    for _ in range(40):
        variables, after = step(variables)
    assert after < 0.5 * before


def test_a_share_or_a_source_that_cannot_be_is_refused():
    with pytest.raises(UserError, match=r"rate=1.0 of MIM; expected above 0 and below 1"):
        MIM("pictures", rate=1.0)
    with pytest.raises(UserError, match=r"MIM source='text'; expected 'image' or 'video'"):
        MIM("pictures", source="text")
    with pytest.raises(UserError, match="no vision encoder"):
        loss_of(MIM("pictures"), {"image": pixels(1)}, vision=None)
