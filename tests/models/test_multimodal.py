"""The seed's system: any combination of modalities, and that an absent one changes no bit."""

import functools
from dataclasses import replace

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from llama_jax.layers.block import Block, Gated, Merged
from llama_jax.layers.stack import Stack
from llama_jax.models.coattention import CoAttention
from llama_jax.models.fusion import Concat, Late, Perceiver, Reading
from llama_jax.models.tokens import Tokens, concatenate, repeat_rows

from .small import BLOCK, FFN, attention, ids, multimodal, pixels, start

# float32 rounding of activations of order 1 through four layers.
TOLERANCE = 1e-5
# Some units in the last place of float32 at 1.
ROUNDING = 1e-6

CO = {"attention": attention(rope=None), "block": BLOCK, "layers": 1}
LATENTS = Stack((Block(attention(rope=None), FFN, cross=Merged()),), 1)
# `share` and `combine` have tests of their own below.
FUSIONS = {
    "coattention": CoAttention(**CO),
    "coattention sum per pair": CoAttention(**CO, combine="sum", share="per_pair"),
    "concat": Concat(Stack((Block(attention(rope=None), FFN),), 1)),
    "reading": Reading(Stack((Block(attention(), FFN, cross=attention(rope=None)),), 1)),
    "gated": Reading(Stack((Block(attention(), FFN, cross=Gated(attention(rope=None), 0.5)),), 1)),
    "merged": Reading(Stack((Block(attention(rope=None), FFN, cross=Merged()),), 1)),
    "perceiver": Perceiver(3, LATENTS, CoAttention(**CO)),
    "late": Late(),
}  # fmt: skip


def answer(model, text, image=None, image_valid=None, video=None, video_valid=None):
    """Fused text and the decoder's logits for whatever is given."""
    return said(model, text, encoded(model, text, image, image_valid, video, video_valid))


def encoded(model, text, image=None, image_valid=None, video=None, video_valid=None):
    """The streams of whatever is given."""
    streams = {"text": model.encode_text(text)}
    for name, media, valid in (("image", image, image_valid), ("video", video, video_valid)):
        if media is not None:
            streams[name] = repeat_rows(model.encode_image(media, valid), text.shape[0])
    return streams


def said(model, text, streams):
    """Fused text and the decoder's logits."""
    fused = model.fuse(streams)
    return fused["text"].x, model.decode(text, model.join(fused))[0]


@functools.cache
def built(name):
    """Parameters and the compiled function of one fusion, shared by the tests."""
    return start(answer, multimodal(FUSIONS[name]).build(), *everything())


def everything():
    return ids(), pixels(2), jnp.ones(2, bool), pixels(2, 2), jnp.ones(2, bool)


@pytest.mark.parametrize("name", FUSIONS)
def test_every_combination_of_modalities_has_finite_answers(name):
    variables, apply = built(name)
    text, image, here, video, _ = everything()
    picture, film = {"image": image, "image_valid": here}, {"video": video, "video_valid": here}
    for kwargs in ({}, picture, picture | film, picture | film | {"image_valid": ~here}):
        x, logits = apply(variables, text, **kwargs)
        assert np.isfinite(x).all() and np.isfinite(logits).all(), kwargs


def test_a_video_alone_has_finite_answers():
    variables, apply = built("coattention")
    text, _, _, video, _ = everything()
    assert all(np.isfinite(x).all() for x in apply(variables, text, video=video))


# One of each kind of module: compiling a backward pass is slow.
@pytest.mark.parametrize("name", ["coattention", "gated", "perceiver"])
def test_gradients_are_finite_when_a_modality_is_missing(name):
    variables, _ = built(name)
    apply = nn.apply(answer, multimodal(FUSIONS[name]).build())
    text, image, here, *_ = everything()
    grads = jax.jit(jax.grad(lambda v: jnp.sum(apply(v, text, image, ~here)[1] ** 2)))(variables)
    assert all(np.isfinite(g).all() for g in jax.tree.leaves(grads))


def with_and_without_video(apply, variables):
    text, image, here, video, _ = everything()
    without = apply(variables, text, image=image, image_valid=here)
    absent = apply(variables, text, image=image, image_valid=here, video=video, video_valid=~here)
    return zip(without, absent, strict=True)


# Operation by operation where streams meet: what is compared is the model's arithmetic. `concat` is
# left out, for there the other tokens are rows of the same products, and a product of more rows may
# round others.
@pytest.mark.parametrize("name", [name for name in FUSIONS if name != "concat"])
def test_adding_an_absent_modality_changes_no_bit(name):
    variables, _ = built(name)
    model = multimodal(FUSIONS[name]).build()
    text, image, here, video, _ = everything()
    media = {"image": image, "image_valid": here, "video": video, "video_valid": ~here}
    streams = jax.jit(nn.apply(encoded, model))(variables, text, **media)
    with jax.disable_jit():
        absent = nn.apply(said, model)(variables, text, streams)
        without = nn.apply(said, model)(variables, text, {k: streams[k] for k in ("text", "image")})
    for a, b in zip(without, absent, strict=True):
        np.testing.assert_array_equal(a, b)


COMBINATIONS = [
    *(("text",), ("image",), ("video",)),
    *(("text", "image"), ("text", "video"), ("text", "image", "video")),
]


@pytest.mark.parametrize("given", COMBINATIONS, ids=" and ".join)
def test_each_combination_is_read_as_if_the_others_did_not_exist(given):
    """One set of weights, six combinations: fused streams and logits have the same bits."""
    variables, _ = built("coattention")
    model = multimodal(FUSIONS["coattention"]).build()
    text, image, here, video, _ = everything()
    every = jax.jit(nn.apply(encoded, model))(variables, text, image, here, video, here)
    others = {m: replace(t, valid=t.valid & (m in given)) for m, t in every.items()}

    def written(model, streams):
        fused = model.fuse(streams)
        return {m: fused[m].x for m in given}, model.decode(text, model.join(fused))[0]

    with jax.disable_jit():
        alone = nn.apply(written, model)(variables, {m: every[m] for m in given})
        absent = nn.apply(written, model)(variables, others)
    assert jax.tree.structure(alone) == jax.tree.structure(absent)
    for a, b in zip(jax.tree.leaves(alone), jax.tree.leaves(absent), strict=True):
        assert np.isfinite(a).all()
        np.testing.assert_array_equal(a, b)


# Compiled, another set of modalities is another program, whose fused loops XLA may round otherwise.
# Within one program an absent example changes no bit, as the next test shows.
@pytest.mark.parametrize("name", FUSIONS)
def test_compiling_with_an_absent_modality_changes_nothing_but_rounding(name):
    variables, apply = built(name)
    for a, b in with_and_without_video(apply, variables):
        np.testing.assert_allclose(a, b, atol=ROUNDING)


@pytest.mark.parametrize("name", FUSIONS)
def test_one_row_without_an_image_answers_as_if_there_were_none(name):
    variables, apply = built(name)
    text, image, *_ = everything()
    mixed = apply(variables, text, image=image, image_valid=jnp.array([True, False]))[1]
    hidden = image.at[1].set(0)
    other = apply(variables, text, image=hidden, image_valid=jnp.array([True, False]))[1]
    np.testing.assert_array_equal(mixed, other)
    np.testing.assert_allclose(mixed[2:], apply(variables, text)[1][2:], atol=TOLERANCE)


@pytest.mark.parametrize("name", [name for name in FUSIONS if name != "late"])
def test_fusion_lets_the_text_see_the_image(name):
    variables, apply = built(name)
    text = ids(4)
    here = jnp.ones(2, bool)
    one, other = (
        apply(variables, text, image=pixels(2, seed=s), image_valid=here)[0] for s in (1, 2)
    )
    assert np.abs(one - other).max() > 1e-3


def test_late_fusion_keeps_the_text_as_it_was():
    variables, apply = built("late")
    here = jnp.ones(2, bool)
    one, other = (
        apply(variables, ids(4), image=pixels(2, seed=s), image_valid=here) for s in (1, 2)
    )
    np.testing.assert_array_equal(one[0], other[0])
    assert np.abs(one[1] - other[1]).max() > 1e-3


@pytest.mark.parametrize("share", ["all", "per_modality"])
def test_joint_and_sum_are_equal_for_two_modalities(share):
    text, image = ids(2), pixels(2)
    joint, total = (
        multimodal(CoAttention(**CO, share=share, combine=combine)).build()
        for combine in ("joint", "sum")
    )
    variables, apply = start(answer, joint, text, image)
    _, apply_total = start(answer, total, text, image)
    np.testing.assert_array_equal(
        apply(variables, text, image)[1], apply_total(variables, text, image)[1]
    )


def test_joint_and_sum_differ_for_three():
    text, image, _, video, _ = everything()
    joint, total = (multimodal(CoAttention(**CO, combine=c)).build() for c in ("joint", "sum"))
    variables, apply = start(answer, joint, *everything())
    _, apply_total = start(answer, total, *everything())
    args = {"image": image, "video": video}
    difference = apply(variables, text, **args)[1] - apply_total(variables, text, **args)[1]
    assert np.abs(difference).max() > 1e-3


@pytest.mark.parametrize(("share", "sets"), [("all", 1), ("per_modality", 3), ("per_pair", 6)])
def test_share_says_how_many_sets_of_cross_modal_weights_there_are(share, sets):
    model = multimodal(CoAttention(**CO, share=share, combine="sum")).build()
    variables, _ = start(answer, model, *everything())
    layer = variables["params"]["fusion"]["layer_0"]
    assert sum(name.startswith("cross_") for name in layer) == sets


def test_questions_that_share_an_image_are_answered_as_if_each_had_its_own():
    text, image = ids(4), pixels(2)
    variables, apply = start(answer, multimodal().build(), text, image)
    shared = apply(variables, text, image)[1]
    own = apply(variables, text, jnp.repeat(image, 2, axis=0))[1]
    np.testing.assert_allclose(shared, own, atol=TOLERANCE)


def test_images_that_do_not_divide_the_rows_are_refused():
    with pytest.raises(ValueError, match="2 images cannot be shared evenly by 3 rows"):
        start(answer, multimodal().build(), ids(3), pixels(2))


def test_parts_of_another_width_are_refused():
    from llama_jax.models.decoder import Decoder

    with pytest.raises(ValueError, match="widths .* must be equal"):
        multimodal(decoder=Decoder(50, 32, Stack((BLOCK,))))


def test_parameter_paths_are_an_interface():
    variables, _ = start(answer, multimodal().build(), ids(2), pixels(2))
    paths = {
        "/".join(k.key for k in path)
        for path, _ in jax.tree_util.tree_leaves_with_path(variables["params"])
    }
    for path in (
        "embed/w",
        "text/stack/layers/block_0/attn/q/w",
        "text/stack/layers/block_0/ffn/gate/w",
        "vision/stem/patches/w",
        "fusion/layer_0/cross_text/q/w",
        "fusion/layer_0/block_image/attn_norm/scale",
        "decoder/stack/layers/block_0/cross/k/w",
        "decoder/norm/scale",
    ):
        assert path in paths, path


def test_packed_rows_are_not_joined_with_another_stream():
    tokens = Tokens(jnp.zeros((1, 2, 4)), jnp.ones((1, 2), bool), jnp.zeros((1, 2, 1), int))
    packed = replace(tokens, segments=jnp.array([[1, 2]]))
    with pytest.raises(ValueError, match="packed rows"):
        concatenate([tokens, packed])
