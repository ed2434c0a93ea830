"""What the tasks of drawing make of rows."""

import numpy as np
import pytest

from llama_jax.data import Drawing, Loader, Pixels, Stream, one_pass
from llama_jax.data.images import decode
from llama_jax.errors import UserError


def test_a_drawing_has_its_instruction_and_a_true_caption(pictures, tokenizer):
    task = Drawing(length=32, caption="captions", size=32)
    made = Loader({"x": Stream(pictures, task, 8)}, tokenizer).batch(0)["x"]
    rows = pictures.open()
    for text, valid, number in zip(made["text"], made["text_valid"], made["id"], strict=True):
        ids = text[valid].tolist()
        assert (ids[0], ids[-1]) == (tokenizer.cls, tokenizer.sep)
        said = tokenizer.decode(ids)
        assert said.removeprefix("draw: ") in rows[int(number)]["captions"]
        assert said.startswith("draw: ")
    assert made["tokens"].tolist() == [[tokenizer.bos]] * 8
    first = decode(rows[int(made["id"][0])]["image"], 32)
    assert np.array_equal(made["image"][0], first)


def test_in_evaluation_the_first_caption_comes(pictures, tokenizer):
    stream = Stream(pictures, Drawing(length=32, caption="captions"), 8)
    made = next(one_pass(stream, tokenizer, 8))
    said = [tokenizer.decode(text) for text in made["text"]]
    assert said == [f"draw: {row['captions'][0]}" for row in list(pictures.open())[:8]]


@pytest.mark.parametrize("task", [Drawing(), Pixels()])
def test_fields_are_as_announced(task, pictures, tokenizer):
    made = next(one_pass(Stream(pictures, task, 4), tokenizer, 4))
    for name, (shape, dtype) in task.fields(4, tokenizer).items():
        assert (made[name].shape, made[name].dtype) == (shape, dtype), name


def test_pixels_are_pictures_alone(pictures, tokenizer):
    made = next(one_pass(Stream(pictures, Pixels(size=16), 4), tokenizer, 4))
    assert {*made} == {"image", "id", "row_valid"} and made["image"].shape == (4, 16, 16, 3)


def test_a_wish_is_read_as_a_caption_is(pictures, tokenizer):
    task = Drawing(length=32)
    caption = pictures.open()[0]["caption"]
    made = next(one_pass(Stream(pictures, task, 1), tokenizer, 1))
    wish = task.wished([f" {caption}\n"], tokenizer)
    assert {*wish} == {"text", "text_valid"}
    assert all(np.array_equal(wish[name], made[name]) for name in wish)


def test_an_empty_and_a_long_wish_are_refused(tokenizer):
    with pytest.raises(UserError, match="nothing to draw in an empty text"):
        Drawing().wished(["  "], tokenizer)
    with pytest.raises(UserError, match="trained with up to 22; try a shorter one"):
        Drawing().wished(["a small " * 30], tokenizer)


def test_sizes_below_one_are_refused():
    for task in (lambda: Drawing(length=0), lambda: Pixels(size=0)):
        with pytest.raises(UserError, match="expected 1 or more"):
            task()
