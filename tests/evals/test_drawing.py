"""The judge of drawings, and what `draw` makes of a run."""

import functools

import numpy as np
import pytest
from PIL import Image

from llama_jax import edit
from llama_jax.__main__ import main
from llama_jax.config import BPE, Run
from llama_jax.data import Drawing, JsonLines, Stream
from llama_jax.data.builders.shapes import COLORS, GROUND, Facts, fit_shape
from llama_jax.errors import UserError
from llama_jax.evals import evaluate
from llama_jax.evals.draw import draw, drawn, sheet
from llama_jax.evals.drawing import Drawings, examples, judge, judged, read
from llama_jax.objectives import Draw, Reconstruct
from llama_jax.optim.optimizer import AdamW
from llama_jax.train.load import load
from llama_jax.train.loop import train
from tests.models.drawer import SIDE, VOCAB, config

BLUE = Facts("rectangle", "blue", "small", "top left")


def picture(color=(0, 0, 255), y=8, x=8, side=12, ground=240):
    image = np.full((64, 64, 3), ground, np.uint8)
    image[y : y + side, x : x + side] = color
    return image


def fit_shape_of(image):
    return fit_shape(image.min(-1) < GROUND)


@pytest.fixture(scope="module")
def runs(compiled_once, tmp_path_factory):
    """An image tokenizer and a run that draws, of two steps each: where they are."""
    place = tmp_path_factory.mktemp("drawing")
    lines = []
    for number, (color, rgb) in enumerate(COLORS.items()):
        Image.fromarray(picture(rgb)).save(place / f"{number}.png")
        caption = f"a small {color} rectangle at the top left"
        lines.append(f'{{"image": "{place}/{number}.png", "caption": "{caption}"}}')
    (place / "rows.jsonl").write_text("\n".join(lines))
    tokenizer, drawing = stages(place)
    train(tokenizer, place / "tokenizer", progress=False)
    train(edit(drawing, "init_from", str(place / "tokenizer")), place / "draw", progress=False)
    return place


def stages(place):
    """Both runs."""

    def run(name, objective):
        stream = Stream(JsonLines(str(place / "rows.jsonl")), Drawing(size=SIDE), 8)
        return Run(
            name=name,
            model=config(),
            data={"drawings": stream},
            objectives={name: objective},
            tokenizer=BPE(VOCAB),
            optimizer=AdamW(groups=() if name == "reconstruct" else (("pictures/*", 0.0),)),
            steps=2,
        )

    return run("reconstruct", Reconstruct("drawings")), run("draw", Draw("drawings"))


@functools.cache
def opened(place):
    return load(place)


def test_the_judge_reads_color_place_and_shape_from_pixels():
    assert judged(picture(), fit_shape_of) == [BLUE]
    assert judged(picture((255, 0, 0), 40, 45, 18), fit_shape_of)[0] == Facts(
        "rectangle", "red", "large", "bottom right"
    )


def test_a_picture_without_a_shape_shows_nothing():
    for image in (picture(side=3), picture(ground=0), picture(y=0, x=0, side=64)):
        assert judged(image, fit_shape_of) == []


def test_right_is_what_was_asked_for_in_any_true_reading():
    other = BLUE._replace(position="top right")
    found = judge([BLUE, BLUE, BLUE], [[other, BLUE], [BLUE._replace(color="red")], []])
    assert {name: right.tolist() for name, right in found.items()} == {
        "color": [True, False, False],
        "shape": [True, True, False],
        "quadrant": [True, True, False],
        "size": [True, True, False],
        "all": [True, False, False],
    }


def test_captions_are_read_back():
    assert read(f" {BLUE.caption} ") == BLUE
    with pytest.raises(UserError, match="cannot be judged by pixels; expected one of easy_vqa's"):
        read("two cats")


def test_a_sheet_has_its_pictures_in_rows_on_white():
    pictures = np.stack([picture(ground=g) for g in (0, 50, 100)])
    made = sheet(pictures)
    assert made.shape == (130, 130, 3)
    assert np.array_equal(made[:64, 66:], pictures[1])
    assert np.array_equal(made[66:, :64], pictures[2])
    assert (made[66:, 66:] == 255).all() and (made[64:66] == 255).all()
    assert np.array_equal(sheet(pictures[:1]), pictures[0])


def test_a_run_that_draws_holds_its_image_tokenizer_unchanged(runs):
    import jax

    before, after = (opened(runs / name).params["pictures"] for name in ("tokenizer", "draw"))
    assert jax.tree.all(jax.tree.map(lambda a, b: bool((a == b).all()), before, after))


def test_evaluations_stand_beside_their_baselines(runs):
    rows = {row.name: row for row in evaluate(opened(runs / "draw"))}
    names = ("color", "shape", "quadrant", "size", "all")
    assert [*rows] == [f"draw_{name}_accuracy" for name in names]
    # All pictures show a small rectangle at the top left, in one of eight colours.
    assert [rows[f"draw_{n}_accuracy"].baseline for n in ("shape", "quadrant", "size")] == [1] * 3
    assert rows["draw_color_accuracy"].baseline < 0.5 and rows["draw_all_accuracy"].count == 8


def test_what_the_image_tokenizer_loses_is_measured(runs):
    rows = {row.name: row for row in evaluate(opened(runs / "tokenizer"))}
    assert [*rows] == [f"reconstruct_{n}" for n in ("psnr", "word_perplexity", "words_used")]
    assert 0 < rows["reconstruct_psnr"].value < 30 and rows["reconstruct_psnr"].baseline > 3
    assert 1 <= rows["reconstruct_word_perplexity"].value <= 15
    assert 1 / 15 <= rows["reconstruct_words_used"].value <= 1


def test_texts_are_drawn_in_batches_that_are_filled_up(runs, monkeypatch):
    trained = opened(runs / "draw")
    captions = [f"a small {color} rectangle at the top left" for color in COLORS][:3]
    monkeypatch.setattr("llama_jax.evals.draw.BATCH", 2)
    made = drawn(trained, captions)
    assert made.shape == (3, SIDE, SIDE, 3) and made.dtype == np.uint8


def test_examples_are_drawn_for_a_report(runs):
    shown = examples(opened(runs / "draw"), "drawings", count=2)
    assert len(shown) == 2 and all(read(one.caption) and one.image.shape[-1] == 3 for one in shown)


def test_the_command_writes_a_sheet(runs, tmp_path):
    out = tmp_path / "blue.png"
    command = ["draw", str(runs / "draw"), BLUE.caption, "--out", str(out), "--samples", "3"]
    assert main(command) == 0
    with Image.open(out) as image:
        assert image.size == (2 * SIDE + 2, 2 * SIDE + 2)
        first = np.array(image)[:SIDE, :SIDE]
    assert np.array_equal(first, draw(runs / "draw", BLUE.caption, 3)[0])


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([BLUE.caption, "--out", "x.jpg"], "a PNG file is written; try x.png"),
        (["", "--out", "x.png"], "nothing to draw in an empty text"),
        ([BLUE.caption, "--out", "x.png", "--samples", "0"], "give 1 or more"),
        ([BLUE.caption, "--out", "x.png", "--temperature", "-1"], "use 0 (greedy) or more"),
        ([BLUE.caption, "--out", "no/x.png"], "there is no folder no; make it first"),
    ],
)
def test_a_mistake_is_told_in_one_line(words, said, runs, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["draw", str(runs / "draw"), *words]) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert said in error and not [*tmp_path.iterdir()]


def test_a_drawing_run_begins_with_an_image_tokenizer_or_not_at_all(runs, tmp_path):
    drawing = stages(runs)[1]
    with pytest.raises(UserError, match=r"needs weights pictures/\* .* and none came; give"):
        train(drawing, tmp_path / "a", progress=False)
    other = edit(edit(drawing, "init_from", str(runs / "draw")), "model.pictures.width", 12)
    with pytest.raises(UserError, match="brings none that fits; give --init-from"):
        train(other, tmp_path / "b", progress=False)


def test_a_run_of_answers_cannot_draw(runs):
    from llama_jax.evals.draw import _task
    from llama_jax.presets import get

    with pytest.raises(UserError, match="trained on questions and not to draw"):
        _task(get("seed_vqa"))
    with pytest.raises(UserError, match="evaluation 'x' reads stream 'y'"):
        Drawings("x", "y").rows(opened(runs / "draw"))
