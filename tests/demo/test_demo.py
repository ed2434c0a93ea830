import json
import shutil
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

from llama_jax import demo as package
from llama_jax.demo import main
from llama_jax.demo.dialogue import Dialogue, Turn, dialogue, parted
from llama_jax.demo.examples import Example, beside, examples
from llama_jax.demo.figures import picture
from llama_jax.demo.report import KEYS, ROWS, page, report, seconds_spent
from llama_jax.demo.shown import Shown, drawing
from llama_jax.demo.stages import STAGES, plan
from llama_jax.errors import Stopped, UserError
from llama_jax.evals import Row
from llama_jax.evals.answer import Answer
from llama_jax.evals.draw import LINE
from llama_jax.train.load import load
from tests.demo import small

LARGEST_PICTURE = 200_000  # bytes; it lies in the repository


@pytest.fixture
def finished(tmp_path):
    return shutil.copytree(small.demo(), tmp_path / "moved")


def found(folder):
    return json.loads((folder / "report.json").read_text())


def size(path):
    with Image.open(path) as image:
        return image.size


class Page(HTMLParser):
    """Collects tags and addresses; complains of a tag that is not closed."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.open, self.addresses, self.text = [], [], [], ""
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.addresses += [value for name, value in attrs if name in ("src", "href")]
        if tag not in ("meta", "img"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data


@pytest.mark.slow  # it makes the demo
def test_the_report_has_the_figures_that_others_read():
    values = found(small.demo())
    assert list(values)[: len(KEYS) + 2] == [*KEYS, "seconds", "parameters"]
    shares = [key for key in KEYS if key != "mlm_perplexity"]
    assert all(0 <= values[key] <= 1 for key in shares) and values["mlm_perplexity"] > 1
    assert values["seconds"] > 0 and values["parameters"] > 10_000
    assert all("baseline" in metric for metric in values["metrics"].values())
    assert {"vqa_accuracy_yes_no", "itm_accuracy_hard"} <= values["metrics"].keys()


def test_the_page_needs_no_other_file_and_shows_pictures_of_every_stage():
    shown = Page((small.demo() / "report.html").read_text())
    # Twelve questions, four drawings, a clip, a dialogue; and the curves.
    assert shown.tags.count("figure") == 18 and shown.tags.count("img") == 19
    assert all(address.startswith("data:image/") for address in shown.addresses)
    assert not {"script", "link", "iframe"} & {*shown.tags}
    for example in found(small.demo())["examples"]:
        assert example["question"] in shown.text and example["answer"] in shown.text
        assert 0 <= example["confidence"] <= 1
        with Image.open(small.demo() / example["picture"]) as image:
            assert image.size == (64, 64)
    assert shown.text.count("usual answer to the question") >= 4


def test_the_page_draws_answers_about_a_clip_and_talks():
    values, shown = found(small.demo()), Page((small.demo() / "report.html").read_text())
    assert len(values["drawings"]) == 4
    for drawn in values["drawings"]:
        assert f"draw: {drawn['caption']}" in shown.text
    [clip], [talk] = values["clips"], values["dialogues"]
    assert clip["question"] in shown.text and len(talk["turns"]) >= 2
    assert all(turn["question"] in shown.text for turn in talk["turns"])
    places = [one["picture"] for one in (*values["drawings"], clip, talk)]
    sizes = [size(small.demo() / place) for place in places]
    # The frames of a clip are side by side.
    assert sizes == [(small.SIDE, small.SIDE)] * 4 + [(2 * 64 + LINE, 64), (64, 64)]


def test_a_wide_picture_and_a_long_table_stay_within_a_phone():
    style = (small.demo() / "report.html").read_text().partition("</style>")[0]
    assert "figure img { width: 100%" in style and ".scroll { overflow-x: auto; }" in style
    assert "minmax(9rem, 1fr)" in style and "pre { " in style and "width=device-width" in style


def test_fine_tuning_starts_from_the_pretrained_weights():
    for later, earlier in (("vqa", "pretrain"), ("talk", "vqa"), ("draw", "words")):
        run = json.loads((small.demo() / later / "run.json").read_text())
        assert run["init_from"] == str(small.demo() / earlier)


def test_a_finished_demo_is_not_trained_again_and_its_report_is_written_again(
    finished, monkeypatch, capsys
):
    monkeypatch.setattr(package, "train", None)  # calling it would raise
    rows = [Row(ROWS.get(key, key), 0.5, 0.25, "chance", 3, "x") for key in KEYS]
    monkeypatch.setattr(package, "evaluate", lambda trained, limit: rows)
    (finished / "report.html").unlink()
    with small.quick():
        assert main(finished, small.runs()) == finished / "report.html"
    out = capsys.readouterr().out
    assert out.count("done before") == len(STAGES)
    assert f"llama-jax answer {finished}/vqa --image {finished}/pictures/01.png" in out
    assert all(found(finished)[key] == 0.5 for key in KEYS)
    # The time of training counts, though it was long ago.
    assert found(finished)["seconds"] > 2


def test_an_interrupted_stage_ends_the_demo_and_the_next_call_goes_on(tmp_path, monkeypatch):
    trained = []

    def train(run, place):
        trained.append(place.name)
        stopped = "SIGINT" if place.name == "vqa" else None
        return type("Result", (), {"stopped": stopped, "step": 1, "seconds": 1.0})

    monkeypatch.setattr(package, "train", train)
    with pytest.raises(Stopped):
        main(tmp_path, small.runs())
    assert trained == ["pretrain", "vqa"] and not (tmp_path / "report.json").exists()
    (tmp_path / "pretrain/checkpoints/2").mkdir(parents=True)
    with pytest.raises(Stopped):
        main(tmp_path, small.runs())
    assert trained == ["pretrain", "vqa", "vqa"]


def test_texts_are_escaped_and_missing_figures_are_null():
    evil = "<script>0</script>"
    example = Example(np.zeros((4, 4, 3), np.uint8), evil, "no", Answer(evil, 0.5))
    rows = [Row("vqa_accuracy", float("nan"), 0.5, evil, 3, "<b>")]
    trained = type("Trained", (), {"params": {"w": np.zeros((2, 3))}})
    turns = (Turn(evil, evil, "no"), Turn("b", "c", "c"))
    shows = Shown([example], clips=[example], talks=[Dialogue(example.image, turns)])
    values = report(trained, rows, shows, 1.0)
    assert values["vqa_accuracy"] is None and values["nsp_accuracy"] is None
    assert values["parameters"] == 6 and json.loads(json.dumps(values, allow_nan=False)) == values
    shown = Page(page(small.demo(), values, rows, shows))
    assert "script" not in shown.tags and shown.text.count(evil) == 7
    assert shown.text.count("true answer: no") == 3


def test_seconds_of_interrupted_training_are_added_up():
    lines = [{"seconds": s} for s in (5.0, 9.0, 2.0, 4.0)] + [{"vqa/accuracy": 1.0}]
    assert seconds_spent(lines) == 13.0
    assert seconds_spent([]) == 0.0


def test_the_picture_for_the_readme_is_small(tmp_path):
    with small.quick():
        picture(small.demo(), tmp_path / "demo.png")
    assert (tmp_path / "demo.png").stat().st_size < LARGEST_PICTURE
    with Image.open(tmp_path / "demo.png") as image:
        assert image.format == "PNG" and image.width > 800


def test_a_picture_of_no_demo_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"holds no run\.json"):
        picture(tmp_path, tmp_path / "demo.png")


def test_a_folder_that_cannot_be_written_is_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be made or written"):
        main(tmp_path / "file" / "demo", small.runs())


def test_a_run_is_exchanged_by_the_name_of_its_stage(tmp_path):
    planned = {stage.name: run for stage, run in plan(tmp_path, {"draw": small.draw()})}
    assert planned["draw"].name == "draw" and planned["clips"].name == "seed_demo_clips"
    assert planned["draw"].init_from == str(tmp_path / "words")
    with pytest.raises(UserError, match="no stage 'drow'.*Did you mean 'draw'"):
        plan(tmp_path, {"drow": small.draw()})


def test_a_dialogue_is_parted_into_its_turns():
    whole = [
        "what color? red. is it the same here?",
        "what color? red. is it the same here? no. and?",
    ]
    assert parted(whole, ["no", "blue"]) == [(whole[0], "no"), ("and?", "blue")]


def test_frames_stand_side_by_side_with_white_lines_between_them():
    video = np.zeros((3, 4, 5, 3), np.uint8)
    strip = beside(video)
    assert strip.shape == (4, 3 * 5 + 2 * LINE, 3)
    assert (strip.min((0, 2)) == 255).sum() == 2 * LINE


def test_a_run_that_lacks_what_is_to_be_shown_is_named():
    trained = load(small.demo() / "vqa")
    with pytest.raises(UserError, match="no questions about videos, only"):
        examples(trained, modality="video")
    with pytest.raises(UserError, match="has no dialogues"):
        dialogue(trained)
    with pytest.raises(UserError, match="does not draw"):
        drawing(trained)
