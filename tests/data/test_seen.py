"""Pictures, questions and answers as one text: what is asked is not learned, and who sees what."""

import numpy as np
import pytest

from llama_jax.data import Seen
from llama_jax.data.rows import Rows
from llama_jax.data.tiles import Tiles
from llama_jax.errors import UserError
from llama_jax.text.tokenizer import Tokenizer

ROWS = [
    {"questions": ["what?", "where?"], "answers": ["red", "left side"], "size": (10, 20)},
    {"questions": "how?", "answers": "so", "size": (8, 8)},
    {"questions": [" "], "answers": ["blank"], "size": (8, 8)},
]


@pytest.fixture(scope="module")
def tokenizer():
    return Tokenizer.train(["what? where? how? red left side so"] * 3, 300)


def row(index):
    image = np.full((*ROWS[index]["size"], 3), 40 * index, np.uint8)
    return {k: v for k, v in ROWS[index].items() if k != "size"} | {"image": image}


def made(tokenizer, once, length=24, slots=None, first=0):
    task = Seen(length=length, tiles=Tiles(8, 2))
    given = Rows("rows", len(ROWS) - first, lambda i: row(i + first))
    examples = task.prepare(given, tokenizer, np.arange(len(given)), once)
    slots = range(len(examples)) if slots is None else slots
    batch = examples.make(slots, [np.random.default_rng(s) for s in slots])
    fields = task.fields(len(slots), tokenizer)
    assert {k: (v.shape, v.dtype.name) for k, v in batch.items()} == fields
    return batch, examples


def test_in_evaluation_every_question_comes_once_and_only_its_answer_counts(tokenizer):
    batch, examples = made(tokenizer, once=True)
    assert len(examples) == 3
    told = [
        tokenizer.decode([t for t, w in zip(row, weights, strict=True) if w and t != tokenizer.eos])
        for row, weights in zip(batch["targets"].tolist(), batch["loss_weights"], strict=True)
    ]
    assert told == ["red", "left side", "so"]
    assert batch["tokens"][:, 0].tolist() == [tokenizer.bos] * 3
    assert batch["tokens"][:, 1].tolist() == [tokenizer.vocab] * 3


def test_a_picture_is_seen_from_its_place_to_the_end(tokenizer):
    batch, _ = made(tokenizer, once=True)
    ends = [1 + int(np.flatnonzero(w)[-1]) for w in batch["loss_weights"]]
    assert batch["spans"][:, 0].tolist() == [[1, end + 1] for end in ends]


def test_a_picture_keeps_its_shape_and_fills_as_many_tiles_as_it_needs(tokenizer):
    batch, _ = made(tokenizer, once=True)
    assert batch["grid"][:, 0].tolist() == [[1, 2], [1, 2], [1, 1]]
    assert not batch["pixels"][2, 0, 1].any() and batch["pixels"][0, 0, 1].any()


def test_in_training_each_picture_comes_once_an_epoch_with_one_of_its_questions(tokenizer):
    batch, examples = made(tokenizer, once=False)
    assert examples.ids.tolist() == [0, 1] and len(batch["id"]) == 2
    drawn = {made(tokenizer, False, slots=[0])[0]["targets"].tobytes() for _ in range(2)}
    assert len(drawn) == 1  # by the key alone


def test_rows_without_a_question_are_refused(tokenizer):
    with pytest.raises(UserError, match="has no row with a question and an answer"):
        made(tokenizer, once=False, first=2)
