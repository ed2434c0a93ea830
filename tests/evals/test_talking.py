"""Talks: what is asked each time, what is forgotten, and the command that leads them."""

import io
import re

import numpy as np
import pytest
from PIL import Image

from llama_jax.__main__ import main
from llama_jax.data.dialogue import before, joined
from llama_jax.errors import UserError
from llama_jax.evals.answer import ask
from llama_jax.evals.talking import Talk
from tests.demo import small

from .test_answer import CLIP, IMAGE, both, trained


@pytest.fixture(autouse=True)
def quickly():
    with small.quick():
        yield


def test_turns_stand_before_the_next_question_as_data_sets_have_them():
    turns = [("a?", "b"), ("c?", "d"), ("e?", "f")]
    assert joined(turns) == ["a?", "a? b. c?", "a? b. c? d. e?"]
    assert [before(turns[:n]) + turns[n][0] for n in range(3)] == joined(turns)


def test_a_turn_is_answered_as_the_whole_text_would_be():
    talk = Talk(trained())
    talk.look("image", IMAGE)
    first = talk.say(" what? ")
    assert talk.turns == [("what?", first.text)]
    second = talk.say("why?")
    assert second == ask(trained(), [IMAGE], [f"what? {first.text}. why?"])[0]


def test_another_picture_is_seen_from_then_on_and_a_video_beside_it():
    talk = Talk(both())
    talk.look("image", np.zeros_like(IMAGE))
    talk.look("image", IMAGE)
    talk.look("video", CLIP)
    assert talk.say("what?") == ask(both(), [{"image": IMAGE, "video": CLIP}], ["what?"])[0]


def test_the_oldest_turns_are_left_out_when_there_is_no_room():
    talk = Talk(trained())
    talk.turns = [("what is it?", "red"), ("where?", "left")] * 4
    talk.say("why?")
    assert 0 < talk.forgotten < 8
    assert talk.turns[-1][0] == "why?" and len(talk.turns) == 9 - talk.forgotten
    task = trained().run.data["questions"].task
    whole = before(talk.turns[:-1]) + "why?"
    assert len(trained().tokenizer.encode(whole)) <= task.length - 2


def test_a_mistake_changes_nothing():
    talk = Talk(trained())
    talk.say("what?")
    turns = list(talk.turns)
    for wrong, match in (("", "is empty"), ("what color is this? " * 9, "tokens; the model was")):
        with pytest.raises(UserError, match=match):
            talk.say(wrong)
    with pytest.raises(UserError, match="about pictures; a video came"):
        talk.look("video", CLIP)
    assert talk.turns == turns and talk.seen == {}
    talk.reset()
    assert talk.turns == []


@pytest.fixture
def told(monkeypatch, capsys):
    """What the command prints on both streams for lines of a pipe."""
    monkeypatch.setattr("llama_jax.__main__._enable_compilation_cache", lambda cache: None)
    small.demo()
    capsys.readouterr()  # what making it has said

    def run(*lines, options=(), status=0):
        monkeypatch.setattr("sys.stdin", io.StringIO("\n".join(lines)))
        assert main(["talk", str(small.demo() / "vqa"), *options]) == status
        return tuple(text.splitlines() for text in capsys.readouterr())

    return run


def test_the_command_answers_each_line_of_a_pipe(told, tmp_path):
    Image.fromarray(IMAGE).save(tmp_path / "a b.png")
    out, err = told("what?", f"/image {tmp_path / 'a b.png'}", "", "what?", "/exit", "not asked")
    assert len(out) == 2 and all("%" in line for line in out)
    assert err == [f"(looking at {tmp_path / 'a b.png'})"]
    assert told(f"/image '{tmp_path / 'a b.png'}'", options=["--image", f"{tmp_path}/a b.png"])


def test_mistakes_end_neither_the_program_nor_the_talk(told, tmp_path):
    wrong = ["/picture", "/image", "/image none.png", "/image 'a", "/video none.mp4", "/draw"]
    wrong += ["/image a\0b.png", "/image ~nobody-of-that-name/a.png", "/image 'a' 'b'"]
    out, err = told(*wrong, "/draw a circle", "what?", "/reset", "what?")
    assert len(out) == 2 and out[0] == out[1]
    said = ["/picture is no command; there are /image", "names no file", "cannot be read"]
    said += ["within its quotes", "a video came", "/draw TEXT"]
    said += ["null byte", "No such file", "is 2 paths", "and not to draw", "(forgotten)"]
    assert len(err) == len(said) and all(s in line for s, line in zip(said, err, strict=True))


def test_bytes_of_a_pipe_that_are_no_text_end_no_talk(told, monkeypatch):
    pipe = io.TextIOWrapper(io.BytesIO(b"what \xff?\nwhat?\n"), "utf-8")
    monkeypatch.setattr(io, "StringIO", lambda _: pipe)
    out, err = told()
    assert len(out) == 2 and err == []


def test_what_is_drawn_gets_a_new_file_each_time(told, tmp_path, monkeypatch):
    def drawn(trained, texts, seed):
        assert texts == ["a red circle"]
        return np.full((1, 8, 8, 3), seed, np.uint8)

    monkeypatch.setattr("llama_jax.evals.draw.drawn", drawn)
    monkeypatch.chdir(tmp_path)
    out, err = told("/draw a red circle", "/draw a red circle")
    assert out == ["(drawn into drawing_1.png)", "(drawn into drawing_2.png)"] and err == []
    for number in (1, 2):
        assert (np.asarray(Image.open(f"drawing_{number}.png")) == number - 1).all()
    (tmp_path / "drawing_3.png").symlink_to(tmp_path / "none" / "file.png")
    assert "cannot be written here" in told("/draw a red circle")[1][0]


def test_what_was_forgotten_is_said(told):
    out, err = told(*["is there a circle?"] * 6)
    assert len(out) == 6 and any(re.search(r"the oldest \d of \d turns", line) for line in err)


def test_a_run_that_cannot_talk_is_refused_before_the_first_line(told, tmp_path):
    _, err = told("what?", options=["--image", str(tmp_path / "none.png")], status=2)
    assert len(err) == 1 and "none.png" in err[0]
    with pytest.raises(UserError, match="not on questions"):
        from llama_jax.train.load import load

        Talk(load(small.demo() / "pretrain"))
