"""Pictures among the words: laid out in ids, placed in chunks and left-padded rows, refusals."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from llama_jax import presets
from llama_jax.errors import UserError
from llama_jax.generate.engine import Engine
from llama_jax.generate.pictures import show
from llama_jax.layers.linear import Lettered
from llama_jax.models.early_vision import EarlyVision
from llama_jax.trees import flat
from tests.models.early import MARKS, config

PICTURE, PATCH = MARKS.picture, MARKS.patch
TOLERANCE = 1e-5  # float32: the same sums, in another order, through two layers


@pytest.fixture(scope="module")
def engine():
    module = config().build()
    given = jnp.zeros((1, 4), jnp.int32), jnp.zeros((1, 1, 16, 16, 3)), jnp.zeros((1, 4), jnp.int32)
    made = jax.jit(module.init)(jax.random.key(0), *given)
    params = jax.tree.map(
        lambda box: box.value, made["params"], is_leaf=lambda x: isinstance(x, Lettered)
    )
    return Engine(module, params)


def picture(seed, height=16, width=32):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


def logits(engine, shown):
    return np.asarray(engine.logits(np.array(shown.prompts), shown.seen))


def test_a_place_becomes_all_ids_of_its_picture():
    shown = show(config(), [[1, PICTURE, 2]], [[picture(0, 16, 16)]])
    assert shown.prompts == [[1, *MARKS.layout((1, 1), 4), 2]]
    assert shown.seen["at_BS"].tolist() == [[3, 4, 5, 6]]
    assert shown.seen["pixels"].shape == (1, 1, 16, 16, 3)


def test_pictures_without_a_place_come_first_but_after_what_begins_every_text():
    shown = show(config(), [[7, 1], [1]], [[picture(0)], []], begin=7)
    assert shown.prompts == [[7, *MARKS.layout((1, 2), 4), 1], [1]]
    assert (shown.seen["at_BS"][1] == -1).all()


def test_a_prompt_that_is_laid_out_already_is_taken_as_it_is():
    before = show(config(), [[1, PICTURE, 2]], [[picture(0)]])
    again = show(config(), before.prompts, [[picture(0)]])
    assert again.prompts == before.prompts
    np.testing.assert_array_equal(again.seen["at_BS"], before.seen["at_BS"])


def test_the_id_of_a_picture_that_a_tokenizer_has_becomes_the_model_s():
    wanted = show(config(), [[1, PICTURE]], [[picture(0)]]).prompts
    assert show(config(), [[1, 9]], [[picture(0)]], token=9).prompts == wanted


def test_a_picture_changes_the_text_after_it_and_none_before(engine):
    one, other = (
        logits(engine, show(config(), [[1, 2, PICTURE, 3]], [[picture(seed)]])) for seed in (0, 1)
    )
    np.testing.assert_array_equal(one[:, :3], other[:, :3])  # up to the first patch
    assert np.abs(one - other)[:, 3:].max(axis=-1).min() > 1e-3


def test_a_tile_changes_nothing_before_its_own_place(engine):
    left = picture(0)
    right = left.copy()
    right[:, 16:] = picture(1, 16, 16)
    one, other = (logits(engine, show(config(), [[PICTURE]], [[image]])) for image in (left, right))
    np.testing.assert_array_equal(one[:, :6], other[:, :6])  # begin, four patches, separator
    assert np.abs(one - other)[:, 6].max() > 1e-4


def test_rows_of_several_lengths_read_in_chunks_give_what_each_gives_alone(engine):
    long = np.random.default_rng(3).integers(0, 30, 40).tolist()
    prompts = [[1, PICTURE, *long, PICTURE, 3], [1, 2, 3], [PICTURE, 5]]
    images = [[picture(0), picture(1, 16, 16)], [], [picture(2, 32, 32)]]
    shown = show(config(), prompts, images)
    rows = engine.rows(3, 128)
    rows.look(shown.seen)
    found = [np.asarray(rows.feed(shown.prompts))]
    later = [[4], [5], [6]]
    found.append(np.asarray(rows.feed(later)))
    for i, (ids, own) in enumerate(zip(prompts, images, strict=True)):
        whole = logits(engine, show(config(), [[*ids, *later[i]]], [own]))[0]
        np.testing.assert_allclose(found[0][i], whole[-2], atol=TOLERANCE, rtol=0)
        np.testing.assert_allclose(found[1][i], whole[-1], atol=TOLERANCE, rtol=0)


def test_what_was_rewound_to_before_a_picture_is_read_with_it_again(engine):
    shown = show(config(), [[1, 2, PICTURE, 3, 4]], [[picture(0)]])
    rows = engine.rows(1, 64)
    rows.look(shown.seen)
    before = np.asarray(rows.feed(shown.prompts))
    for keep in (len(shown.prompts[0]) - 1, 8, 1):  # after the picture, within it, before it
        assert rows.rewind(shown.prompts[0][:keep]) == keep
        again = np.asarray(rows.feed([shown.prompts[0][keep:]]))
        np.testing.assert_allclose(again, before, atol=TOLERANCE, rtol=0)


def test_a_text_without_pictures_needs_no_tower(engine):
    ids = np.array([[1, 2, 3]])
    alone = Engine(config().decoder.build(), {"decoder": engine.params["decoder"]})
    np.testing.assert_array_equal(engine.logits(ids), alone.logits(ids))


@pytest.mark.parametrize(
    ("ids", "images", "message"),
    [
        ([PICTURE, 1, PICTURE], 1, "has 2 places .* and 1 pictures came"),
        ([PICTURE, 1], 2, "has 1 places .* and 2 pictures came"),
        ([PATCH] * 5, 1, r"has 5 places for patches .* have 3 tiles of 4"),
        ([PATCH] * 4, 0, r"has 4 places for patches .* have 0 tiles of 4"),
    ],
)
def test_other_numbers_of_places_than_of_pictures_are_refused(ids, images, message):
    with pytest.raises(UserError, match=message):
        show(config(), [ids], [[picture(0)] * images])


@pytest.mark.parametrize(
    ("own", "message"),
    [
        ({"out": 8}, r"vision\.out=8 and decoder\.width=16 must be equal"),
        ({"tile": 18}, "tile=18 is not a multiple of patch=4 times merge=2"),
    ],
)
def test_a_tower_that_does_not_fit_is_refused(own, message):
    with pytest.raises(UserError, match=message):
        config(**own)


def test_marks_outside_of_the_vocabulary_are_refused():
    with pytest.raises(UserError, match=r"decoder\.vocab=40: ids of the vocabulary were expected"):
        EarlyVision(config().decoder, config().vision)


def test_the_eyes_of_llama_4_have_as_many_parameters_as_meta_s():
    vision = presets.get("llama4_scout_vision").model.vision
    made = jax.eval_shape(vision.build().init, jax.random.key(0), jnp.zeros((1, 336, 336, 3)))
    boxes = flat(made["params"], is_leaf=lambda x: isinstance(x, Lettered))
    counts = {"adapter": 0, "out": 0, "encoder": 0}
    for path, box in boxes.items():
        part = {"adapter": "adapter", "adapter_out": "adapter", "out": "out"}
        counts[part.get(path.split("/")[0], "encoder")] += box.value.size
    assert counts == {"encoder": 811_115_008, "adapter": 39_845_888, "out": 4096 * 5120}
