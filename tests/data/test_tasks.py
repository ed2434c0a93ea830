"""Each task makes the fields that it declares, and what they say is true of the source."""

import json

import numpy as np
import pytest
from PIL import Image

from llama_jax.data import (
    Captions,
    Denoise,
    Describe,
    ImageFolder,
    JsonLines,
    Labels,
    LanguageModel,
    Loader,
    Masking,
    PlainText,
    Questions,
    SentencePairs,
    Seq2Seq,
    Stream,
    one_pass,
)
from llama_jax.data.fields import identity
from llama_jax.errors import UserError


def first_batch(source, task, tokenizer, batch=8, **options):
    stream = Stream(source, task, batch, **options)
    made = Loader({"x": stream}, tokenizer).batch(0)["x"]
    fields = {name: (array.shape, str(array.dtype)) for name, array in made.items()}
    assert fields == stream.fields(tokenizer)
    for evaluated in one_pass(stream, tokenizer):
        assert evaluated.pop("row_valid").shape == (batch,)
        assert {k: (v.shape, str(v.dtype)) for k, v in evaluated.items()} == fields
        break
    return made


@pytest.mark.parametrize("order", ["nsp", "sop", "both", "none"])
@pytest.mark.parametrize("mlm", [None, Masking(), Masking(unit="whole_word")])
def test_sentence_pairs_are_framed_and_typed(chapters, tokenizer, order, mlm):
    b = first_batch(chapters, SentencePairs(48, mlm, order), tokenizer, 16)
    t = tokenizer
    sizes = b["text_valid"].sum(1)
    assert (b["text"][:, 0] == t.cls).all() and (b["text"][~b["text_valid"]] == t.pad).all()
    assert (b["text"][np.arange(16), sizes - 1] == t.sep).all()
    if order == "none":
        assert "text_types" not in b and "next" not in b
        assert ((b["text"] == t.sep).sum(1) == 1).all()
        return
    assert ((b["text"] == t.sep).sum(1) == 2).all()
    for row, types, size in zip(b["text"], b["text_types"], sizes, strict=True):
        middle = np.flatnonzero(row == t.sep)[0]
        assert types.tolist() == [0] * (middle + 1) + [1] * (size - middle - 1) + [0] * (48 - size)
    if order == "both":
        b = first_batch(chapters, SentencePairs(48, mlm, order), t, 64)  # some chunks are short
        three = {(0, 0), (-1, 1), (1, -1)}
        assert set(zip(b["next"].tolist(), b["order"].tolist(), strict=True)) == three
    else:
        assert set(b["next" if order == "nsp" else "order"].tolist()) == {0, 1}


def test_mlm_fields_say_what_stood_where(chapters, tokenizer):
    plain = first_batch(chapters, SentencePairs(48, None), tokenizer, 16)
    b = first_batch(chapters, SentencePairs(48, Masking()), tokenizer, 16)
    rows = np.arange(16)[:, None]
    real = b["mlm_weights"] == 1
    assert (real.sum(1) == np.maximum(1, np.round(0.15 * b["text_valid"].sum(1)))).all()
    assert (plain["text"][rows, b["mlm_positions"]][real] == b["mlm_targets"][real]).all()
    assert (b["mlm_targets"][real] >= tokenizer.reserved).all()
    assert (b["mlm_positions"][~real] == 0).all()
    changed = np.argwhere(plain["text"] != b["text"])
    assert {(r, p) for r, p in changed} <= set(
        zip(*np.nonzero(real)[:1], b["mlm_positions"][real], strict=True)
    )


def test_a_caption_belongs_to_its_picture_and_its_class_is_the_captions(pictures, tokenizer):
    rows = pictures.open()
    b = first_batch(pictures, Captions(16), tokenizer, 40)
    for i, text, group in zip(b["id"], b["text"], b["class"], strict=True):
        assert tokenizer.decode(text) == rows[int(i)]["caption"]
        same = [r["caption"] for r in rows].count(rows[int(i)]["caption"])
        assert (b["class"] == group).sum() == same
    assert (b["class"] >= 0).all() and (b["classes"] == b["class"][:, None]).all()
    picture = np.asarray(Image.open(__import__("io").BytesIO(rows[int(b["id"][0])]["image"])))
    assert (b["image"][0] == picture).all()


def test_of_several_captions_one_is_drawn_and_all_are_its_classes(tmp_path, tokenizer):
    Image.new("RGB", (8, 8)).save(tmp_path / "0.png")
    captions = ["a lamb", "the sea", "a lamb at the sea"]
    (tmp_path / "x.jsonl").write_text(json.dumps({"image": "0.png", "caption": captions}))
    source = JsonLines(str(tmp_path / "x.jsonl"))
    known = {identity(text) for text in captions}
    drawn = set()
    for step in range(8):
        loader = Loader({"x": Stream(source, Captions(16, size=8), 1)}, tokenizer)
        b = loader.batch(step)["x"]
        assert set(b["classes"][0].tolist()) == known and b["classes"].shape == (1, 8)
        assert b["class"][0] == identity(tokenizer.decode(b["text"][0]))
        drawn |= set(b["class"].tolist())
    assert len(drawn) > 1
    one = next(one_pass(Stream(source, Describe(answer_length=8, size=8), 1), tokenizer))
    assert tokenizer.decode(one["targets"][0]) == "a lamb"
    assert set(one["classes"][0].tolist()) == known
    with pytest.raises(UserError, match=r"has 3 captions in 'caption', 1 to most=2 were expected"):
        first_batch(source, Captions(16, size=8, most=2), tokenizer, 1)


def test_captions_can_be_masked_for_mlm_grounded_in_the_picture(pictures, tokenizer):
    b = first_batch(pictures, Captions(16, mlm=Masking(rate=0.3), size=32), tokenizer, 8)
    assert b["image"].shape == (8, 32, 32, 3) and (b["mlm_weights"].sum(1) >= 1).all()


def test_captions_can_be_written_beside_their_alignment(pictures, tokenizer):
    batch = first_batch(pictures, Captions(16, answer_length=12), tokenizer)
    for text, valid, target, weights in zip(
        batch["text"], batch["text_valid"], batch["targets"], batch["loss_weights"], strict=True
    ):
        caption = [*text[valid][1:-1], tokenizer.eos]  # without <cls> and <sep>
        assert target[weights > 0].tolist() == caption


def test_a_share_of_pictures_is_marked_absent_in_training_and_none_in_evaluation(
    pictures, tokenizer
):
    stream = Stream(pictures, Questions(16, per_image=1, absent=0.25), 32)
    loader = Loader({"x": stream}, tokenizer)
    seen = np.concatenate([loader.batch(step)["x"]["image_valid"] for step in range(25)])
    assert seen.shape == (800,)
    assert 0.7 < seen.mean() < 0.8  # three deviations of 800 draws are 0.046
    assert all(batch["image_valid"].all() for batch in one_pass(stream, tokenizer))


def test_describe_asks_with_a_prompt_and_answers_with_the_caption(pictures, tokenizer):
    rows, t = pictures.open(), tokenizer
    b = first_batch(pictures, Describe(length=16, prompt="a picture of"), tokenizer, 4)
    assert t.decode(b["text"][0]) == "a picture of"
    with pytest.raises(UserError, match=r"tokens and length=4 leaves room for 2"):
        first_batch(pictures, Describe(length=4, prompt="a picture of"), tokenizer, 4)
    for i, given, target, weights in zip(
        b["id"], b["tokens"], b["targets"], b["loss_weights"], strict=True
    ):
        size = int(weights.sum())
        assert t.decode(target) == rows[int(i)]["caption"] and target[size - 1] == t.eos
        assert given[0] == t.bos and (given[1:size] == target[: size - 1]).all()
        assert (target[size:] == 0).all() and (given[size:] == 0).all()


def test_questions_share_their_picture_and_keep_their_answers(pictures, tokenizer):
    rows, t = pictures.open(), tokenizer
    task = Questions(16, per_image=4)
    b = first_batch(pictures, task, tokenizer, 24)
    assert b["image"].shape == (6, 64, 64, 3)
    asked = [(i, q, a) for i, r in enumerate(rows)
             for q, a in zip(r["questions"], r["answers"], strict=True)]  # fmt: skip
    from llama_jax.data.images import decode

    for row in range(24):
        i, question, answer = asked[int(b["id"][row])]
        assert t.decode(b["text"][row]) == question and t.decode(b["targets"][row]) == answer
        assert (b["image"][row // 4] == decode(rows[i]["image"])).all()
    assert len(set(b["id"].tolist())) > 20  # drawn without repeating while there are enough


@pytest.mark.parametrize("per_image", [1, 4, 8])
def test_evaluation_asks_every_question_exactly_once(pictures, tokenizer, per_image):
    total = sum(len(row["questions"]) for row in pictures.open())
    ids = []
    for b in one_pass(Stream(pictures, Questions(16, per_image=per_image), 32), tokenizer):
        ids += b["id"][b["row_valid"]].tolist()
        assert (b["loss_weights"][~b["row_valid"]] == 0).all()
        assert (b["loss_weights"][b["row_valid"]].sum(1) > 0).all()
    assert sorted(ids) == list(range(total))


def test_a_batch_that_does_not_hold_whole_pictures_is_refused(pictures, tokenizer):
    with pytest.raises(UserError, match="try batch=12"):
        Loader({"x": Stream(pictures, Questions(per_image=4), 10)}, tokenizer)


def test_packed_rows_keep_documents_apart(tmp_path, tokenizer):
    (tmp_path / "t.txt").write_text("\n\n".join(f"Document {i} says {i}." for i in range(30)))
    t = tokenizer
    stream = Stream(PlainText(str(tmp_path / "t.txt")), LanguageModel(24), 4)
    first_batch(stream.source, stream.task, t, 4)
    seen = []
    for b in one_pass(stream, t):
        for row in range(4):
            given, target = b["tokens"][row], b["targets"][row]
            real = b["loss_weights"][row] == 1
            start = given == t.bos
            assert (b["positions"][row][start] == 0).all()
            assert (np.diff(b["segments"][row][b["segments"][row] > 0]) == start[
                1 : (b["segments"][row] > 0).sum()]).all()  # fmt: skip
            assert not real[given == t.eos].any()  # nothing follows the end of a document
            assert (target[:-1][real[:-1]] == given[1:][real[:-1]]).all()
            if b["row_valid"][row]:
                seen += target[real].tolist()
    whole = [i for d in stream.source.open() for i in [*t.encode(d["text"]), t.eos]]
    assert seen == whole  # every token is predicted exactly once


class Letters:
    """A tokenizer like some that come with weights: nothing before a text, one id after it."""

    vocab, bos, eos = 128, None, 0

    def encode(self, text):
        return [ord(letter) for letter in text]

    def encode_all(self, texts):
        return [self.encode(text) for text in texts]

    def decode(self, ids):
        return "".join(chr(i) for i in ids if i)


def test_a_text_is_read_as_it_is_written_and_may_have_no_beginning(tmp_path):
    (tmp_path / "t.txt").write_text("a b.\n c.\n\nd\n")
    source, words = PlainText(str(tmp_path / "t.txt")), Letters()
    [b] = one_pass(Stream(source, LanguageModel(12), 1), words)
    assert words.decode(b["tokens"][0]) == "a b.\n c.d"
    assert b["segments"].tolist() == [[1] * 9 + [2, 2, 0]]
    assert b["positions"][0, :11].tolist() == [*range(9), 0, 1]
    assert b["loss_weights"].tolist() == [[1] * 8 + [0, 1, 0, 0]]  # no end gives a beginning
    [b] = one_pass(Stream(source, LanguageModel(12, packed=False), 2), words)
    assert [words.decode(row) for row in b["tokens"]] == ["a b.\n c.", "d"]
    assert [words.decode(row) for row in b["targets"]] == [" b.\n c.", ""]
    assert b["loss_weights"].sum(1).tolist() == [8, 1]


def test_sentences_without_a_text_are_joined_by_blanks(tmp_path):
    (tmp_path / "t.jsonl").write_text(json.dumps({"sentences": ["One.", "Two."]}))
    [b] = one_pass(Stream(JsonLines(str(tmp_path / "t.jsonl")), LanguageModel(12), 1), Letters())
    assert Letters().decode(b["tokens"][0]) == "One. Two."
    (tmp_path / "t.jsonl").write_text(json.dumps({"text": " "}))
    with pytest.raises(UserError, match="holds no text in any of its 1 rows"):
        first_batch(JsonLines(str(tmp_path / "t.jsonl")), LanguageModel(12), Letters())


def test_a_lone_document_begins_anew_where_it_wraps_round(tmp_path):
    (tmp_path / "t.txt").write_text("abcde")
    stream = Stream(PlainText(str(tmp_path / "t.txt")), LanguageModel(8), 1)
    b = Loader({"x": stream}, Letters()).batch(0)["x"]
    text, begins = b["tokens"][0], np.flatnonzero(b["tokens"][0] == ord("a"))
    assert len(begins) and (b["positions"][0][begins] == 0).all()
    assert (b["loss_weights"][0] == (text != 0)).all()


def test_unpacked_rows_are_one_document_each(chapters, tokenizer):
    stream = Stream(chapters, LanguageModel(32, packed=False), 4)
    assert "segments" not in first_batch(chapters, stream.task, tokenizer, 4)
    rows = chapters.open()
    for b in one_pass(stream, tokenizer):
        for index, given in zip(b["id"].tolist(), b["tokens"].tolist(), strict=True):
            text = " ".join(rows[index]["sentences"])
            assert given == [tokenizer.bos, *tokenizer.encode(text)][:32]


@pytest.mark.parametrize("spare", [0, 1, 3])
def test_pieces_of_a_document_begin_and_end_as_it_does_and_nowhere_else(tmp_path, tokenizer, spare):
    (tmp_path / "t.txt").write_text("the sea and the land")
    source, t = PlainText(str(tmp_path / "t.txt")), tokenizer
    whole = [t.bos, *t.encode("the sea and the land"), t.eos]
    length = len(whole) - 1 - spare
    loader = Loader({"x": Stream(source, LanguageModel(length, packed=False), 8)}, t)
    found = set()
    for step in range(8):
        b = loader.batch(step)["x"]
        for given, target in zip(b["tokens"].tolist(), b["targets"].tolist(), strict=True):
            assert given[1:] == target[:-1]
            found.add((*given, target[-1]))
        assert (b["loss_weights"] == 1).all()
    assert found == {tuple(whole[at : at + length + 1]) for at in range(spare + 1)}


def test_denoising_rows_are_full_and_hide_a_span_for_each_sentinel(chapters, tokenizer):
    b = first_batch(chapters, Denoise(64), tokenizer, 8)
    sentinels = list(tokenizer.sentinels)
    full = b["text_valid"].all(1)
    assert full.sum() >= 6
    for text, target in zip(b["text"], b["targets"], strict=True):
        asked = [i for i in text.tolist() if i in sentinels]
        assert asked == [i for i in target.tolist() if i in sentinels] == sentinels[: len(asked)]
    with pytest.raises(UserError, match="needs 28 sentinels"):
        Denoise(512).fields(8, tokenizer)


def test_pairs_of_texts_come_from_json_lines(tmp_path, tokenizer):
    rows = [{"translation": {"en": f"number {i}", "de": f"Nummer {i}"}} for i in range(5)]
    (tmp_path / "x.jsonl").write_text("\n".join(map(json.dumps, rows)))
    source = JsonLines(str(tmp_path / "x.jsonl"))
    task = Seq2Seq("translation.en", "translation.de", 24, 24, prefix="to German:")
    b = first_batch(source, task, tokenizer, 4)
    for i, text, target in zip(b["id"], b["text"], b["targets"], strict=True):
        assert tokenizer.decode(text) == f"to German: number {i}"
        assert tokenizer.decode(target) == f"Nummer {i}"
    with pytest.raises(UserError, match="Did you mean 'de'"):
        first_batch(source, Seq2Seq("translation.en", "translation.dee"), tokenizer)


def test_the_instruction_of_a_row_comes_before_its_source_and_a_blank_one_is_none(
    tmp_path, tokenizer
):
    rows = [{"source": "five", "target": "cinq", "task": t} for t in ("translate to French", " ")]
    (tmp_path / "x.jsonl").write_text("\n".join(map(json.dumps, rows)))
    source = JsonLines(str(tmp_path / "x.jsonl"))
    made = (
        Seq2Seq(instruction="task").prepare(source.open(), tokenizer, np.arange(2)).make([0, 1], [])
    )
    read = [tokenizer.decode(row) for row in made["text"].tolist()]
    assert read == ["translate to French: five", "five"]
    with pytest.raises(UserError, match="has no field 'tasks'.*Did you mean 'task'"):
        first_batch(source, Seq2Seq(instruction="tasks"), tokenizer)


def test_labels_of_pictures_and_names_of_texts(tmp_path, tokenizer):
    for name in ("a/1.png", "b/1.png"):
        (tmp_path / name).parent.mkdir()
        Image.new("RGB", (9, 5)).save(tmp_path / name)
    b = first_batch(ImageFolder(str(tmp_path)), Labels(text=None, image="image", size=8),
                    tokenizer, 4)  # fmt: skip
    assert (b["label"] == b["id"]).all() and b["image"].shape == (4, 8, 8, 3) and "text" not in b
    (tmp_path / "x.jsonl").write_text('{"text": "good", "label": "pos"}')
    source = JsonLines(str(tmp_path / "x.jsonl"))
    b = first_batch(source, Labels(16, names=("neg", "pos")), tokenizer, 2)
    assert b["label"].tolist() == [1, 1]
    with pytest.raises(UserError, match="has the class 'pos'.*Did you mean 'poss'"):
        first_batch(source, Labels(16, names=("neg", "poss")), tokenizer, 2)


def test_a_cut_answer_has_no_end_token(tmp_path, tokenizer):
    (tmp_path / "x.jsonl").write_text(json.dumps({"source": "a", "target": "zq " * 30}))
    b = first_batch(JsonLines(str(tmp_path / "x.jsonl")), Seq2Seq(answer_length=6), tokenizer, 2)
    assert (b["loss_weights"] == 1).all() and not (b["targets"] == tokenizer.eos).any()


def test_next_sentence_pairs_need_another_document(tmp_path, tokenizer):
    (tmp_path / "t.txt").write_text("Only one. Document.")
    with pytest.raises(UserError, match="try order='sop'"):
        first_batch(PlainText(str(tmp_path / "t.txt")), SentencePairs(), tokenizer)


@pytest.mark.parametrize(
    ("task", "field", "value"),
    [
        (LanguageModel, "length", 0),
        (SentencePairs, "length", 0),
        (SentencePairs, "short", -0.1),
        (Denoise, "length", 0),
        (Denoise, "length", 3),
        (Denoise, "rate", 0),
        (Denoise, "mean_span", 0),
        (Seq2Seq, "length", 0),
        (Seq2Seq, "answer_length", -1),
        (Labels, "length", 0),
        (Labels, "size", 0),
        (Labels, "frames", -1),
        (Captions, "length", 0),
        (Captions, "answer_length", -1),
        (Captions, "most", 0),
        (Describe, "length", 0),
        (Describe, "answer_length", 0),
        (Describe, "size", -64),
        (Questions, "length", 0),
        (Questions, "per_image", 0),
        (Questions, "absent", 1.5),
        (Masking, "predictions", 0),
        (Masking, "mean_span", 0.5),
        (Masking, "longest_span", 0),
    ],
)
def test_a_length_or_share_that_cannot_be_is_refused_with_one_that_can(task, field, value):
    with pytest.raises(UserError, match=f"^{field}={value}.*; try "):
        task(**{field: value})
    task()
