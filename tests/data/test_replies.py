"""Questions that pictures share, parts of data sets, and tokenizers that frame texts."""

import numpy as np
import pytest

from llama_jax.data import JsonLines, Only, Replies, Seq2Seq, Stream, Tfds, one_pass
from llama_jax.data.fields import framed
from llama_jax.data.splits import of_split
from llama_jax.errors import UserError
from llama_jax.text.pretrained import open_tokenizer
from llama_jax.text.roles import Named, framing, with_roles
from llama_jax.text.tokenizer import Tokenizer
from tests.demo.small import PICTURES
from tests.generate import small

TASK = Replies(length=64, answer_length=24, per_text=4, size=8)


@pytest.fixture
def words(tmp_path):
    """The small tokenizer, whose files name <cls> and <sep>."""
    files = with_roles(small.files(), {"cls": "<s>", "sep": "</s>"}, small.tokenizer())
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    return open_tokenizer(tmp_path)


def asked():
    """Every question of the pictures with its answer and its picture's number."""
    rows = PICTURES.open()
    for i in range(len(rows)):
        yield from (
            (q, a, i) for q, a in zip(rows[i]["questions"], rows[i]["answers"], strict=True)
        )


def test_every_question_of_every_picture_comes_once_and_its_answer_is_learned(words):
    found = []
    for batch in one_pass(Stream(PICTURES, TASK, 16), words, 16):
        for row in np.flatnonzero(batch["row_valid"]):
            text = row // 4
            places, weights = batch["places"][text], batch["loss_weights"][row]
            answer = batch["targets"][text][weights > 0].tolist()
            tokens = batch["tokens"][text].tolist()
            begin = places[0] + 1
            assert answer[-1] == words.eos and tokens[0] == small.CONTROL["<s>"]
            assert tokens[begin : begin + len(answer) - 1] == answer[:-1]
            found.append(
                (words.decode(tokens[1:begin]), words.decode(answer).strip(), batch["id"][row])
            )
        spare = ~batch["row_valid"]
        assert not batch["loss_weights"][spare].any()
    assert sorted(found) == sorted(asked())


def test_pictures_of_a_text_are_drawn_anew_and_are_right_for_it(words):
    rows, right = PICTURES.open(), set(asked())
    examples = TASK.prepare(rows, words, np.arange(len(rows)))
    seen = set()
    for seed in range(2):
        every = range(len(examples))
        batch = examples.make(every, [np.random.default_rng(seed + i) for i in every])
        assert "row_valid" not in batch
        for row, picture in enumerate(batch["id"]):
            places, weights = batch["places"][row // 4], batch["loss_weights"][row]
            question = words.decode(batch["tokens"][row // 4][1 : places[0] + 1].tolist())
            answer = words.decode(batch["targets"][row // 4][weights > 0].tolist()).strip()
            assert (question, answer, picture) in right
        seen.add(tuple(batch["id"].tolist()))
    assert len(seen) == 2


def test_what_does_not_fit_is_told(words):
    with pytest.raises(UserError, match=r"has \d+ tokens, \d+ of them after .*; try length=\d+"):
        Replies(length=4).ids("what color is it?", "red", words)
    with pytest.raises(UserError, match="batch=6 is not a multiple of per_text=4; try batch=8"):
        TASK.fields(6, words)


def test_a_part_of_a_data_set_has_its_rows_alone_on_every_split():
    colours = Only(PICTURES, "color", "red")
    rows = [row for i in range(16) if (row := PICTURES.open()[i])["color"] == "red"]
    assert [row["image_id"] for row in colours.open()] == [row["image_id"] for row in rows]
    there = of_split(colours, "test")
    assert there == Only(Tfds("easy_vqa", split="test", limit=16), "color", "red")
    assert of_split(Only(JsonLines("rows.jsonl"), "color", "red"), "test") is None
    with pytest.raises(UserError, match="no row whose color is 'rad'; there are .*Did you mean"):
        Only(PICTURES, "color", "rad").open()


def test_control_tokens_take_roles_and_frame_texts(words):
    named = framing(words, "a task")
    assert isinstance(named, Named)
    ids = words.encode("the sea")
    assert framed(ids, named, 99) == [small.CONTROL["<s>"], *ids, small.CONTROL["</s>"]]
    assert named.decode(framed(ids, named, 99)) == "the sea"


def test_a_tokenizer_without_roles_is_refused_with_what_to_give():
    rows = PICTURES.open()
    with pytest.raises(UserError, match="Seq2Seq needs <cls>, <sep>.*--set tokenizer.cls='<s>'"):
        Seq2Seq().prepare(rows, small.tokenizer(), np.arange(1))
    with pytest.raises(UserError, match="tokenizer.cls='<S>' is no control token.*Did you mean"):
        with_roles({}, {"cls": "<S>"}, small.tokenizer())
    trained = Tokenizer.train(["the sea"], 300)
    assert framing(trained, "a task") is trained
    with pytest.raises(UserError, match="trained here has tokens of its own"):
        with_roles({}, {"cls": "<s>"}, trained)
