"""Texts in, texts out: `llama-jax ask` and what is behind it, with a run that knows four words."""

import dataclasses
import functools
import json
import math
import os
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from llama_jax import presets
from llama_jax.__main__ import main
from llama_jax.config import BPE, Run
from llama_jax.data import JsonLines, LanguageModel, Seq2Seq, Stream, Tfds, Union
from llama_jax.errors import UserError
from llama_jax.evals import answer
from llama_jax.evals.ask import ROWS, instructions, replies, unknown
from llama_jax.objectives import Seq2Seq as Writing
from llama_jax.optim.optimizer import AdamW, Constant
from llama_jax.tasks import mixture
from llama_jax.train.load import load
from llama_jax.train.loop import train
from tests.demo import small

from .test_answer import CLIP, IMAGE, both

WORDS = {"one": "eins", "two": "zwei", "three": "drei", "four": "vier"}
# Log-probabilities of one text from two programs, whose sums of float32 have other orders.
TOLERANCE = 1e-4


@functools.cache
def place():
    """The directory of a run that has learned the words, and "translate to German:" before them."""
    folder = Path(os.environ["LLAMA_JAX_TESTS"]) / "words"
    folder.mkdir()
    rows = [json.dumps({"source": k, "target": v}) for k, v in WORDS.items()]
    (folder / "words.jsonl").write_text("\n".join(rows))
    run = Run(
        name="words",
        model=dataclasses.replace(small.model(), vision=None),
        data={
            "words": Stream(
                JsonLines(str(folder / "words.jsonl")),
                Seq2Seq(length=24, answer_length=8, prefix="translate to German:"),
                8,
            )
        },
        objectives={"words": Writing(on="words")},
        optimizer=AdamW(rate=1e-2, schedule=Constant(warmup=5)),
        tokenizer=BPE(small.VOCAB),
        steps=80,
    )
    train(run, folder / "run", progress=False)
    return folder / "run"


@functools.cache
def trained():
    return load(place())


def asking(data):
    return dataclasses.replace(trained().run, data=data, objectives={"texts": Writing(on="texts")})


def told(*words):
    return [f"translate to German: {word}" for word in words]


def test_answers_come_in_the_order_of_the_texts_and_blank_ones_stay_blank():
    words = [*WORDS, "", *list(WORDS)[::-1], " "] * 5
    assert len(words) > ROWS
    given = list(replies(trained(), [told(w)[0] if w.strip() else w for w in words]))
    assert [one.answer for one in given] == [WORDS.get(word, "") for word in words]
    assert [one.logprob is None for one in given] == [not word.strip() for word in words]


def test_a_text_is_answered_alike_alone_and_among_others_and_by_a_beam_that_finds_the_same():
    [alone] = replies(trained(), told("three"))
    among = list(replies(trained(), told("one", "three", "two")))[1]
    [beam] = replies(trained(), told("three"), beam=3)
    assert alone.logprob is not None and -1 < alone.logprob < 0
    for other in (among, beam):
        assert other.answer == alone.answer == "drei"
        assert other.logprob == pytest.approx(alone.logprob, abs=TOLERANCE)


def test_a_text_about_a_picture_is_answered_as_a_question_is(tmp_path):
    Image.new("RGB", (90, 70), "red").save(tmp_path / "red.png")
    with small.quick():
        vqa, image = load(small.demo() / "vqa"), str(tmp_path / "red.png")
        question = "what color is it?"
        [reply] = replies(vqa, [question], image)
        said = answer.answer(small.demo() / "vqa", image, question)
        assert reply.answer == said.text and reply.logprob is not None
        assert math.exp(reply.logprob) <= said.confidence * 1.001
        assert list(replies(vqa, [question]))[0].logprob != reply.logprob  # it looks


@pytest.mark.parametrize("given", [["video"], ["image", "video"]])
def test_a_text_about_a_clip_is_answered_as_a_question_is_and_a_picture_may_stand_beside_it(given):
    seen: dict[str, Any] = {name: {"image": IMAGE, "video": CLIP}[name] for name in given}
    with small.quick():
        [reply] = replies(both(), ["what is it?"], **seen)
        [said] = answer.ask(both(), [seen], ["what is it?"])
        assert reply.answer == said.text and reply.logprob is not None
        assert math.exp(reply.logprob) <= said.confidence * 1.001
        with pytest.raises(UserError, match="about pictures; a video came; try --image FILE"):
            replies(load(small.demo() / "vqa"), ["what?"], video=CLIP)


def test_a_run_says_what_it_was_trained_to_be_told():
    run = asking(mixture(["number_words", "sentiment"], 8))
    assert unknown(run, "translate to Chinese: ten") is None
    assert unknown(run, "classify the sentiment: 好") is None
    for text in ("translate to Italian: ten", "ten", "translate to Chinese ten"):
        said = unknown(run, text) or ""
        assert "translate to Spanish, translate to Chinese, classify the sentiment" in said
    assert unknown(trained().run, "translate to German: x") is None


def test_instructions_are_those_of_a_source_alone_too_and_none_where_none_stands_in_front():
    def given(source, **task):
        stream = Stream(source, Seq2Seq(**task), 4)
        return instructions(asking({"texts": stream}))

    assert given(Tfds("bbc_news"), instruction="task") == {"headlines": ("summarise",)}
    own = Union({"mine": JsonLines("x.jsonl"), "replies": Tfds("chatterbot")})
    assert given(own, instruction="task") == {"replies": ("reply",)}
    assert given(Tfds("bbc_news")) == {}
    assert unknown(presets.get("seed_vqa"), "is it red?") is None


def test_the_command_prints_an_answer_or_json(capsys):
    assert main(["ask", str(place()), *told("two")]) == 0
    assert capsys.readouterr().out == "zwei\n"
    assert main(["ask", str(place()), "--json", "--beam", "2", *told("two")]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["text"], found["answer"]) == (told("two")[0], "zwei") and found["logprob"] < 0


def test_a_file_is_answered_line_by_line(capsys, tmp_path):
    (tmp_path / "x.txt").write_text("\n".join([*told("one"), "", *told("four"), ""]))
    assert main(["ask", str(place()), "--input", str(tmp_path / "x.txt")]) == 0
    assert capsys.readouterr().out == "eins\n\nvier\n"
    (tmp_path / "x.txt").write_text("")
    assert main(["ask", str(place()), "--input", str(tmp_path / "x.txt")]) == 2
    assert "is empty; expected a text a line" in capsys.readouterr().err


def test_a_file_of_another_program_is_read_without_its_mark_and_one_that_is_no_text_is_refused(
    capsys, tmp_path
):
    (tmp_path / "x.txt").write_bytes(b"\xef\xbb\xbf" + told("two")[0].encode() + b"\r\n")
    assert main(["ask", str(place()), "--json", "--input", str(tmp_path / "x.txt")]) == 0
    out, err = capsys.readouterr()
    assert json.loads(out)["text"] == told("two")[0] and "instruction" not in err
    (tmp_path / "x.txt").write_bytes("fünf".encode("latin-1"))
    assert main(["ask", str(place()), "--input", str(tmp_path / "x.txt")]) == 2
    assert "x.txt is not UTF-8 text (byte 1)" in capsys.readouterr().err


def test_an_unknown_instruction_is_answered_and_the_known_ones_are_named_once(capsys, tmp_path):
    (tmp_path / "x.txt").write_text("to Italian: one\nto Dutch: one\n" + "one " * 30)
    assert main(["ask", str(place()), "--input", str(tmp_path / "x.txt")]) == 0
    out, err = capsys.readouterr()
    assert len(out.splitlines()) == 3
    assert err.count("no instruction") == 1 and "for: translate to German (each" in err
    assert "line 3: 'one one" in err and "tokens are not read" in err


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ([], "a text or --input FILE, and neither came"),
        (["a", "--input", "x"], "a text or --input FILE, and both came"),
        ([" "], "the text is empty"),
        (["f\udcfcnf"], "the text 'f\\udcfcnf' is not UTF-8"),
        (["--input", "nothing.txt"], "nothing.txt cannot be read: No such file"),
        (["--input", "."], "cannot be read: Is a directory"),
        (["a", "--beam", "0"], "width=0"),
        (["a", "--image", "x.png", "--image", "y.png"], "--image came twice"),
        (["a", "--bean", "2"], "unknown option '--bean'"),
        (["a", "--image", "x.png"], "sees no pictures; leave --image out"),
        (["a", "--video", "x.mp4"], "sees no pictures; leave --video out"),
    ],
)
def test_what_cannot_be_asked_is_refused_in_one_line(args, message, capsys):
    assert main(["ask", str(place()), *args]) == 2
    out, err = capsys.readouterr()
    assert message in err and err.count("\n") == 1 and not out


def test_a_run_that_does_not_write_from_a_text_is_refused():
    lm = presets.get("tiny_decoder")
    alone = dataclasses.replace(trained(), run=lm, model=lm.model.build())
    with pytest.raises(UserError, match="does not write an answer.*generate"):
        replies(alone, ["a"])
    stream = Stream(JsonLines("x.jsonl"), LanguageModel(), 4)
    nothing = dataclasses.replace(trained(), run=asking({"texts": stream}))
    with pytest.raises(UserError, match="no text answers another"):
        replies(nothing, ["a"])
