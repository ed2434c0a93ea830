"""Rows without text are left out and counted, by every task."""

import json

import numpy as np
import pytest

from llama_jax.data import (
    Captions,
    ImageFolder,
    JsonLines,
    Labels,
    LanguageModel,
    Loader,
    Questions,
    SentencePairs,
    Seq2Seq,
    Stream,
    blank,
    documents,
    one_pass,
)
from llama_jax.errors import UserError
from tests.data.test_images import encoded

GOOD = [f"Number {i} is good. It follows number {i - 1}." for i in range(1, 9)]


def source(tmp_path, rows):
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return JsonLines(str(tmp_path / "rows.jsonl"))


def read(source, task, tokenizer, batch=2):
    stream = Stream(source, task, batch)
    return Loader({"x": stream}, tokenizer).report(1), list(one_pass(stream, tokenizer))


@pytest.mark.parametrize("task", [LanguageModel(32), LanguageModel(32, packed=False)])
def test_documents_without_text_are_left_out_and_counted(tmp_path, tokenizer, task):
    gaps = [{"text": None}, {"text": " \n"}, {"text": []}]
    alone = read(source(tmp_path, [{"text": t} for t in GOOD]), task, tokenizer)
    notes, found = read(source(tmp_path, gaps + [{"text": t} for t in GOOD]), task, tokenizer)
    assert alone[0] == [] and len(notes) == 1
    assert "3 of 11 rows hold no text and are left out" in notes[0]
    for mine, theirs in zip(found, alone[1], strict=True):
        assert all((mine[name] == theirs[name]).all() for name in ("tokens", "targets"))


def test_sentence_pairs_leave_empty_documents_out(tmp_path, tokenizer):
    rows = [{"text": ""}, *({"text": t} for t in GOOD), {"text": None}]
    notes, found = read(source(tmp_path, rows), SentencePairs(32), tokenizer)
    assert "2 of 10 rows hold no text" in notes[0]
    assert sum(b["row_valid"].sum() for b in found) == 2 * len(GOOD)  # one a sentence


@pytest.mark.parametrize("gap", [None, "", " "])
def test_a_pair_without_a_target_teaches_nothing(tmp_path, tokenizer, gap, monkeypatch):
    rows = [{"source": "a cat", "target": gap}, {"source": "a dog", "target": "ein Hund"}]
    notes, [b] = read(source(tmp_path, rows), Seq2Seq(length=16, answer_length=16), tokenizer)
    assert "1 of 2 rows hold no text" in notes[0] and b["row_valid"].tolist() == [True, False]
    assert tokenizer.decode(b["targets"][0]) == "ein Hund"
    # A source that is not read through beforehand: the row is there, and weighs nothing.
    monkeypatch.setattr(blank, "INDEXED", 1)
    notes, [b] = read(source(tmp_path, rows), Seq2Seq(length=16, answer_length=16), tokenizer)
    assert notes == [] and b["loss_weights"][0].sum() == 0 < b["loss_weights"][1].sum()


def test_an_empty_document_of_a_large_source_is_read_as_the_next(tmp_path, tokenizer, monkeypatch):
    monkeypatch.setattr(blank, "INDEXED", 1)
    monkeypatch.setattr(documents, "INDEXED", 1)
    rows = source(tmp_path, [{"text": GOOD[0]}, {"text": None}, {"text": GOOD[1]}, {"text": ""}])
    found = documents.Documents(rows.open(), None, tokenizer)
    same = [[sentence.tolist() for sentence in found[i]] for i in range(4)]
    assert same[1] == same[2] and same[3] == same[0] != same[1]


def test_a_source_without_any_text_is_refused(tmp_path, tokenizer):
    for task in (LanguageModel(8), LanguageModel(8, packed=False), SentencePairs(16)):
        with pytest.raises(UserError, match="holds no text in any of its 2 rows"):
            read(source(tmp_path, [{"text": ""}, {"text": None}]), task, tokenizer)


def test_numbers_are_text_where_text_is_read(tmp_path, tokenizer):
    image = {"image": "1.png", "questions": ["how many", "so"], "answers": [2, True]}
    (tmp_path / "1.png").write_bytes(encoded(np.zeros((4, 4, 3), np.uint8)))
    rows = source(tmp_path, [image | {"caption": 5, "text": 7.5, "label": 1.0}])
    _, [b] = read(rows, Questions(16, 8, per_image=2, size=4), tokenizer)
    assert [tokenizer.decode(t) for t in b["targets"]] == ["2", "true"]
    _, [b] = read(rows, Captions(16, size=4, answer_length=8), tokenizer, 1)
    assert tokenizer.decode(b["targets"][0]) == "5"
    _, [b] = read(rows, Labels(16), tokenizer, 1)
    assert tokenizer.decode(b["text"][0]) == "7.5" and b["label"].tolist() == [1]
    with pytest.raises(UserError, match=r"holds \{'a': 1\} where a text was expected"):
        read(source(tmp_path, [{"source": {"a": 1}, "target": "x"}]), Seq2Seq(), tokenizer)
    with pytest.raises(UserError, match="has the class 1.5; expected a whole number"):
        read(source(tmp_path, [{"text": "x", "label": 1.5}]), Labels(16), tokenizer, 1)


def test_questions_without_an_answer_are_left_out_and_counted(tmp_path, tokenizer):
    (tmp_path / "1.png").write_bytes(encoded(np.zeros((4, 4, 3), np.uint8)))
    image = {"image": "1.png", "questions": ["a", "b", None], "answers": [None, "yes", "no"]}
    notes, [b] = read(
        source(tmp_path, [image]), Questions(16, 8, per_image=1, size=4), tokenizer, 1
    )
    assert notes == [f"x: {str(tmp_path / 'rows.jsonl')!r}: 2 questions without a text or an "
                     "answer are left out"]  # fmt: skip
    assert tokenizer.decode(b["targets"][0]) == "yes"


def test_hidden_files_are_no_pictures_and_others_are_counted(tmp_path):
    for name in ("cats/1.png", ".ipynb_checkpoints/1.png", "cats/.2.png", "__MACOSX/cats/1.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True, parents=True)
        (tmp_path / name).write_bytes(encoded(np.zeros((4, 4, 3), np.uint8)))
    rows = ImageFolder(str(tmp_path)).open()
    assert [row["label_name"] for row in rows] == ["cats"] and rows.notes == []
    for name in ("cats/3.bmp", "cats/4.bmp", "cats/Thumbs.db"):
        (tmp_path / name).write_bytes(b"x")
    [note] = ImageFolder(str(tmp_path)).open().notes
    assert "left out are 3 files (2 .bmp, 1 .db); pictures end in .png, .jpg" in note
