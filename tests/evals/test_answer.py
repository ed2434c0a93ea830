import dataclasses
import functools

import numpy as np
import pytest
from PIL import Image

from llama_jax import presets
from llama_jax.__main__ import main
from llama_jax.data import Stream, one_pass
from llama_jax.errors import UserError
from llama_jax.evals.answer import Answer, answer, ask, tasks
from llama_jax.evals.inputs import encode
from llama_jax.evals.text import answers
from llama_jax.train.load import load
from tests.demo import small

# Probabilities computed in two orders of float32 sums.
TOLERANCE = 1e-5
NOISE = np.random.default_rng(0)
IMAGE = NOISE.integers(0, 255, (64, 64, 3)).astype(np.uint8)
CLIP = NOISE.integers(0, 255, (8, 64, 64, 3)).astype(np.uint8)


@functools.cache
def trained():
    return load(small.demo() / "vqa")


@pytest.fixture(autouse=True)
def quickly():
    with small.quick():
        yield


@pytest.fixture
def image(tmp_path):
    Image.new("RGB", (90, 70), "red").save(tmp_path / "red.png")
    return str(tmp_path / "red.png")


def test_an_answer_is_a_text_with_its_probability_among_the_choices(image):
    given = answer(small.demo() / "vqa", image, "what color is it?")
    assert (given.text, given.confidence) in given.choices
    probabilities = [p for _, p in given.choices]
    assert 0 < given.confidence <= 1 and sum(probabilities) <= 1 + TOLERANCE
    assert probabilities == sorted(probabilities, reverse=True)
    assert len({text for text, _ in given.choices}) == len(given.choices)


def test_questions_in_one_batch_do_not_see_each_other(image):
    other = np.zeros((64, 64, 3), np.uint8)
    pairs = [(image, "what color is it?"), (other, "is there a circle?")]
    together = ask(trained(), *zip(*pairs, strict=True))
    for pair, given in zip(pairs, together, strict=True):
        alone = ask(trained(), [pair[0]], [pair[1]])[0]
        assert alone.text == given.text
        assert alone.confidence == pytest.approx(given.confidence, rel=TOLERANCE)


def test_answers_are_those_that_evaluations_count():
    made = next(one_pass(trained().run.data["questions"], trained().tokenizer, 2))
    inputs = encode(trained(), [made], 2)
    counted = answers(trained(), inputs, inputs.index, made["targets"].shape[1], 2)
    given = ask(trained(), made["image"][made["row_valid"]], inputs.asked)
    assert [one.text for one in given] == counted


def test_it_is_printed_in_one_line():
    given = Answer("red", 0.982, (("red", 0.982), ("brown", 0.012), ("blue", 0.001), ("a", 0.0)))
    assert str(given) == "red (98 %; then brown 1 %, blue 0 %)"
    assert str(Answer("red", 1.0)) == "red (100 %)"
    assert str(Answer("a\n\x1b[2J", 0.5)) == "a��[2J (50 %)"


@pytest.mark.parametrize("question", ["", "  \n"])
def test_an_empty_question_is_refused_before_anything_is_loaded(question):
    with pytest.raises(UserError, match="the question is empty; expected a short text; try"):
        answer("nowhere", "nothing.png", question)


def test_a_question_that_is_too_long_is_refused(image):
    with pytest.raises(UserError, match=r"tokens; the model was trained with up to 22; try"):
        ask(trained(), [image], ["what color is the thing that I see? " * 5])


def test_no_image_and_no_picture_file_are_refused(tmp_path):
    with pytest.raises(UserError, match="cannot be read"):
        answer(small.demo() / "vqa", tmp_path / "none.png", "what?")
    (tmp_path / "text.png").write_text("hello")
    with pytest.raises(UserError, match="is not an image"):
        answer(small.demo() / "vqa", tmp_path / "text.png", "what?")


def test_a_directory_without_a_run_or_a_checkpoint_is_refused(image, tmp_path):
    with pytest.raises(UserError, match=r"holds no run\.json"):
        answer(tmp_path, image, "what?")
    (tmp_path / "run.json").write_text((small.demo() / "vqa/run.json").read_text())
    with pytest.raises(UserError, match="checkpoint"):
        answer(tmp_path, image, "what?")


def test_a_run_that_was_not_trained_on_questions_is_refused(image):
    with pytest.raises(UserError, match="trained on documents, captions and not on questions"):
        answer(small.demo() / "pretrain", image, "what?")


@pytest.mark.parametrize(("part", "name"), [("vision", "vision encoder"), ("decoder", "decoder")])
def test_a_model_without_eyes_or_without_a_pen_is_refused(image, part, name):
    run = trained().run
    lacking = dataclasses.replace(run, model=dataclasses.replace(run.model, **{part: None}))
    with pytest.raises(UserError, match=f"has no {name}; expected"):
        ask(dataclasses.replace(trained(), run=lacking), [image], ["what?"])


@pytest.mark.parametrize("name", ["seed_smollm2_eyes", "tiny_cross_vision", "tiny_decoder"])
def test_of_a_decoder_that_looks_it_is_said_that_it_is_not_asked_so(name):
    with pytest.raises(UserError, match="is a .*asked of an encoder-decoder.* try `llama"):
        tasks(presets.get(name), ["image"])


@functools.cache
def both():
    """The same run, as if it had been trained on clips of 4 frames too."""
    run = trained().run
    stream: Stream = run.data["questions"]
    clips = dataclasses.replace(stream, task=dataclasses.replace(stream.task, frames=4))
    data = {"questions": stream, "clips": clips}
    return dataclasses.replace(trained(), run=dataclasses.replace(run, data=data))


def test_a_run_is_asked_about_what_it_was_trained_on_and_the_other_is_named(image):
    with pytest.raises(UserError, match="about pictures; a video came; try --image FILE"):
        ask(trained(), [{"video": CLIP}], ["what?"])
    clips = dataclasses.replace(both().run, data={"questions": both().run.data["clips"]})
    only = dataclasses.replace(both(), run=clips)
    with pytest.raises(UserError, match="videos of 4 frames; a picture came; try --video FILE"):
        ask(only, [image], ["what?"])
    assert ask(only, [{"video": CLIP}], ["what?"])[0].text is not None


# A picture alone, or a video alone, comes with a text that says nothing: this.
LOOK = "what?"
SEEN = {
    "text": {},
    "image": {"image": IMAGE},
    "video": {"video": CLIP},
    "image and video": {"image": IMAGE, "video": CLIP},
}


def test_any_combination_of_modalities_is_answered_in_one_batch_as_alone():
    together = ask(both(), [*SEEN.values()], [LOOK] * len(SEEN))
    for seen, given in zip(SEEN.values(), together, strict=True):
        [alone] = ask(both(), [seen], [LOOK])
        assert alone.text == given.text
        assert alone.confidence == pytest.approx(given.confidence, rel=TOLERANCE)
    assert len({round(given.confidence, 6) for given in together}) == len(SEEN)


def test_the_command_line_prints_the_answer_or_one_line(image, capsys, monkeypatch):
    monkeypatch.setattr("llama_jax.__main__._enable_compilation_cache", lambda cache: None)
    place = str(small.demo() / "vqa")
    assert main(["answer", place, "--image", image, "--question", "what color is it?"]) == 0
    assert capsys.readouterr().out.count("\n") == 1
    assert main(["answer", place, "--question", "what color is it?"]) == 0  # of the text alone
    assert capsys.readouterr().out.count("\n") == 1
    assert main(["answer", place, "--image", "none.png", "--question", "what?"]) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1 and "none.png" in err


def test_the_old_place_says_the_new_one():
    with pytest.raises(ImportError, match="from llama_jax.evals.answer import answer"):
        from llama_jax.generate.answer import answer  # noqa: F401
