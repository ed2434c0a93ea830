"""Pictures laid out in ids among the words: places, questions that are not learned, refusals."""

import numpy as np
import pytest

from llama_jax.data import SeenAmong
from llama_jax.data.marks import Marks
from llama_jax.data.rows import Rows
from llama_jax.data.tiles import HALF, Tiles
from llama_jax.errors import UserError
from llama_jax.text.tokenizer import Tokenizer

MARKS = Marks(900, 901, 902, 903, 904, 905)
SIZES = [(8, 8), (8, 16)]  # rows and columns of pixels; tiles have 8


@pytest.fixture(scope="module")
def tokenizer():
    return Tokenizer.train(["what? red"] * 3, 280)


def row(index):
    image = np.full((*SIZES[index], 3), 40 + index, np.uint8)
    return {"questions": ["what?"], "answers": ["red"], "image": image}


def made(tokenizer, tiles=2):
    task = SeenAmong(length=32, tiles=Tiles(8, tiles, HALF, HALF), tokens=4, marks=MARKS)
    given = Rows("rows", len(SIZES), row)
    batch = task.prepare(given, tokenizer, np.arange(2), True).make(
        [0, 1], [np.random.default_rng(0)] * 2
    )
    assert {k: (v.shape, v.dtype.name) for k, v in batch.items()} == task.fields(2, tokenizer)
    return batch


@pytest.mark.parametrize(
    ("grid", "wanted"),
    [
        ((1, 1), "900 904 905 905 901"),
        ((1, 2), "900 905 905 902 905 905 903 904 905 905 901"),
        ((2, 1), "900 905 905 903 905 905 903 904 905 905 901"),
    ],
)
def test_a_picture_is_laid_out_row_by_row_and_then_as_a_whole(grid, wanted):
    assert MARKS.layout(grid, 2) == [int(id) for id in wanted.split()]


def test_marks_of_another_vocabulary_are_as_far_from_each_other_as_meta_s():
    assert Marks.after(200_080) == Marks()
    assert Marks.after(10) == Marks(10, 11, 14, 15, 20, 22)


def test_marks_that_are_the_same_or_no_ids_are_refused():
    for ids in ([1, 1, 2, 3, 4, 5], [-1, 1, 2, 3, 4, 5]):
        with pytest.raises(UserError, match="six ids of their own were expected"):
            Marks(*ids)


def test_vectors_stand_where_the_text_has_patches_and_nothing_stands_for_missing_tiles(tokenizer):
    batch = made(tokenizer)
    for tokens, at, count in zip(batch["tokens"], batch["at"], (4, 12), strict=True):
        assert at[:count].tolist() == np.flatnonzero(tokens == MARKS.patch).tolist()
        assert (at[count:] == -1).all()
    assert batch["pixels"][0, 0].any() and not batch["pixels"][0, 1:].any()
    # Both tiles of the second picture, and the whole of it.
    assert all(batch["pixels"][1, tile].any() for tile in range(3))


def test_only_the_answer_is_learned(tokenizer):
    batch = made(tokenizer)
    for targets, weights in zip(batch["targets"], batch["loss_weights"], strict=True):
        told = [int(t) for t, w in zip(targets, weights, strict=True) if w]
        assert tokenizer.decode(told[:-1]) == "red" and told[-1] == tokenizer.eos


def test_pictures_of_one_tile_at_most_have_no_whole_beside_it(tokenizer):
    batch = made(tokenizer, tiles=1)
    assert batch["pixels"].shape[1] == 1
    assert (batch["at"] >= 0).all()


def test_a_text_without_room_for_a_picture_is_refused():
    with pytest.raises(UserError, match=r"length=32 has no room for a picture.* tokens=144"):
        SeenAmong(length=32)
