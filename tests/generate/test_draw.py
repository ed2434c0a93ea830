"""Words of pictures are written one after the other, and painted."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from llama_jax import presets
from llama_jax.errors import UserError
from llama_jax.generate.draw import Within, draw, paint
from llama_jax.generate.sample import Sampling
from tests.models.drawer import SIDE, VOCAB, batch, drawer

GREEDY = Sampling()
KEY = jax.random.key(0)
STREAM = batch()["drawings"]
CODES = 15


def drawn(sampling=GREEDY, key=KEY):
    model, variables, _ = drawer()
    text = STREAM["text"], STREAM["text_valid"]
    return draw(model, variables["params"], *text, bos=1, side=SIDE, sampling=sampling, key=key)


def test_greedy_drawing_writes_the_most_probable_word_at_each_place():
    model, variables, _ = drawer()
    ids = drawn()
    assert ids.shape == (3, 16)
    tokens = np.concatenate([np.full((3, 1), 1), ids[:, :-1]], axis=1)

    def logits(module):
        text = module.encode_text(STREAM["text"], STREAM["text_valid"])
        return module.readout(tokens, module.join(module.fuse({"text": text}))).logits

    found = np.array(model.apply(variables, method=logits))
    found[..., :VOCAB] = -np.inf
    assert np.array_equal(found.argmax(-1), ids)


def test_only_words_of_pictures_are_drawn_however_it_is_sampled():
    for seed in range(3):
        ids = drawn(Sampling(temperature=50.0), jax.random.key(seed))
        assert VOCAB <= ids.min() and ids.max() < VOCAB + CODES


def test_a_seed_decides_what_is_drawn():
    hot = Sampling(temperature=5.0)
    assert np.array_equal(drawn(hot), drawn(hot))
    assert not np.array_equal(drawn(hot), drawn(hot, jax.random.key(1)))


def test_the_best_of_some_ids_is_not_the_best_of_all():
    logits = jnp.array([[9.0, 1.0, 2.0, 8.0]])
    assert Within(1, 2, GREEDY)(logits, None).tolist() == [2]


def test_words_of_a_picture_are_painted_as_it_is_reconstructed():
    model, variables, pixels = drawer()
    ids = model.apply(variables, pixels, method="words_of")
    whole = np.clip(model.apply(variables, pixels, method="reconstruct"), -1, 1)
    painted = paint(model, variables["params"], ids)
    assert painted.dtype == np.uint8
    assert np.abs(painted - (whole + 1) * 127.5).max() <= 0.51  # half a unit of rounding


@pytest.mark.parametrize("wrong", [VOCAB - 1, VOCAB + CODES, -1, 0])
def test_an_image_token_outside_of_the_code_book_is_refused(wrong):
    model, variables, _ = drawer()
    ids = np.full((1, 16), VOCAB)
    ids[0, 3] = wrong
    with pytest.raises(UserError, match=f"token {wrong} is outside of the code book; expected 300"):
        paint(model, variables["params"], ids)


def test_words_that_make_no_square_are_refused():
    model, variables, _ = drawer()
    with pytest.raises(UserError, match="15 image tokens are no square"):
        paint(model, variables["params"], np.full((1, 15), VOCAB))


def test_a_language_model_says_that_it_cannot_draw():
    model = presets.get("tiny_decoder").model.build()
    with pytest.raises(UserError, match="no words for pictures; try a run of seed_draw"):
        paint(model, {}, np.zeros((1, 16), int))
