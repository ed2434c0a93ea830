"""Clips and dialogues, judged with models whose answers are known."""

import dataclasses
import json

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from llama_jax import presets
from llama_jax.data import JsonLines, Questions, Stream
from llama_jax.evals import evaluations
from llama_jax.evals.combinations import Combinations
from llama_jax.evals.dialogues import Dialogues
from llama_jax.evals.moving import ABOUT, Clips, Shuffled, filmed, single
from llama_jax.models.tokens import Tokens
from llama_jax.objectives import Seq2Seq
from llama_jax.train.load import Trained

from .conftest import COLORS, Oracle

FASTER, DIRECTION = "what color is the faster shape?", "in which direction does the shape move?"


class LastFrame(Oracle):
    """Sees nothing of a clip but its last frame."""

    def encode_image(self, pixels, valid=None):
        return Oracle.encode_image(self, pixels[:, -1], valid)

    def fuse(self, streams):
        return streams


class Listener(Oracle):
    """Says the colour that the text names, and red if it names none; looks at no picture."""

    def fuse(self, streams):
        said = streams["text"].x[:, :1]
        return {"text": streams["text"], "image": streams["image"].with_x(jnp.asarray(said))}


def opened(trained, kind, rows, folder, task):
    """The oracle's Trained with another module, and these rows as its one stream."""
    (folder / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    known = trained({"answers": Seq2Seq("rows")})
    oracle = known.model
    module = kind(oracle.tokens, oracle.names, oracle.vocab)
    source = JsonLines(str(folder / "rows.jsonl"))
    run = dataclasses.replace(known.run, data={"rows": Stream(source, task, 4)})
    return Trained(run, module, {}, known.tokenizer, 7)


def frame(folder, color):
    Image.new("RGB", (8, 8), COLORS[color]).save(folder / f"{color}.png")
    return str(folder / f"{color}.png")


def values(rows):
    return {row.name: (row.value, row.baseline, row.count) for row in rows}


@pytest.fixture
def clips(trained, tmp_path):
    """Clips of two frames that end in a colour, which is the answer."""
    rows = [
        {
            "video": [frame(tmp_path, first), frame(tmp_path, last)],
            "questions": [FASTER, DIRECTION],
            "answers": [last, "red"],
        }
        for first, last in (("red", "green"), ("blue", "green"), ("black", "blue"))
    ]
    task = Questions(40, 3, per_image=2, size=8, image="video", frames=2)
    return opened(trained, LastFrame, rows, tmp_path, task)


def test_clips_are_judged_by_kind_of_question_with_both_controls(clips):
    found = values(Clips("clips", "rows", batch=4).rows(clips))
    usual = 2 / 3, 3  # green, of three questions
    assert found == {
        "clips_accuracy": (0.5, pytest.approx(5 / 6), 6),
        "clips_accuracy_direction": (0.0, 1.0, 3),
        "clips_accuracy_faster": (1.0, *usual),
        # The first frame of one clip is red, which is the right direction.
        "clips_accuracy_single_frame": (pytest.approx(1 / 6), pytest.approx(5 / 6), 6),
        "clips_accuracy_direction_single_frame": (pytest.approx(1 / 3), 1.0, 3),
        "clips_accuracy_faster_single_frame": (0.0, *usual),
        # Of two frames none stays, so the last is the first.
        "clips_accuracy_shuffled_frames": (pytest.approx(1 / 6), pytest.approx(5 / 6), 6),
        "clips_accuracy_direction_shuffled_frames": (pytest.approx(1 / 3), 1.0, 3),
        "clips_accuracy_faster_shuffled_frames": (0.0, *usual),
    }


def test_a_run_over_clips_or_dialogues_calls_for_their_evaluations(clips, dialogues):
    for trained, kind in ((clips, Clips), (dialogues, Dialogues)):
        assert [type(one) for one in evaluations(trained.run)] == [kind]


def test_no_frame_of_a_shuffled_clip_stays_and_each_comes_once():
    video = np.broadcast_to(np.arange(8).reshape(1, 8, 1, 1, 1), (50, 8, 2, 2, 3))
    moved = Shuffled(0)(video)[..., 0, 0, 0]
    assert (np.sort(moved, axis=1) == np.arange(8)).all() and (moved != np.arange(8)).all()
    assert len({tuple(order) for order in moved.tolist()}) > 40
    [made] = filmed([{"video": video, "text": 1}], single)
    assert made["text"] == 1 and (made["video"] == 0).all() and made["video"].shape == video.shape


@pytest.fixture
def dialogues(trained, tmp_path):
    """Dialogues of two turns, of which the second asks for what the first said."""
    rows = []
    for kind, color in (("a", "red"), ("a", "green"), ("b", "green"), ("b", "blue")):
        first, last = f"it is {color}, yes?", "what?"
        row = {"image": frame(tmp_path, color), "kind": kind, "last": last, "target": color}
        row["questions"] = ["what color?", f"{first} yes. {last}"]
        row |= {"source": row["questions"][-1], "answers": [color, color]}
        rows.append(row)
    task = Questions(40, 3, per_image=2, size=8)
    return opened(trained, Listener, rows, tmp_path, task)


def test_dialogues_are_judged_by_their_last_turn_with_the_history_cut_off(dialogues):
    found = values(Dialogues("talk", "rows", batch=4).rows(dialogues))
    assert found == {
        "talk_accuracy": (5 / 8, 4 / 8, 8),  # of the first turns that of red alone
        "talk_last_turn": (1.0, 2 / 4, 4),
        "talk_last_turn_a": (1.0, 1 / 2, 2),
        "talk_last_turn_b": (1.0, 1 / 2, 2),
        "talk_last_turn_history_cut": (1 / 4, 2 / 4, 4),
        "talk_last_turn_a_history_cut": (1 / 2, 1 / 2, 2),
        "talk_last_turn_b_history_cut": (0.0, 1 / 2, 2),
        "talk_last_turn_shuffled_images": (1.0, 2 / 4, 4),
    }


def test_kinds_of_questions_have_names_of_their_own():
    assert len({*ABOUT.values()}) == len(ABOUT) and "" not in ABOUT.values()


class Both(LastFrame):
    """Says what the picture shows, else the last frame of the clip, else nothing it knows."""

    def encode_image(self, pixels, valid=None):
        see = super().encode_image if pixels.ndim == 5 else super(LastFrame, self).encode_image
        return see(pixels, valid)

    def join(self, streams):
        shown = [streams[name] for name in ("image", "video") if name in streams]
        x = sum(tokens.x[:, -1:] * tokens.valid[:, -1:, None] for tokens in shown)
        there = sum(tokens.valid[:, -1:] for tokens in shown) > 0
        return Tokens(jnp.asarray(x), jnp.asarray(there), shown[0].positions[:, -1:])


def test_all_six_combinations_stand_in_one_table(clips, tmp_path):
    (tmp_path / "pictures").mkdir()
    rows = [
        {"image": frame(tmp_path, color), "questions": ["what color?"], "answers": [color]}
        for color in ("red", "black")
    ]
    (tmp_path / "pictures.jsonl").write_text("\n".join(map(json.dumps, rows)))
    source = JsonLines(str(tmp_path / "pictures.jsonl"))
    pictures = Stream(source, Questions(40, 3, per_image=1, size=8), 4)
    run = dataclasses.replace(clips.run, data=clips.run.data | {"pictures": pictures})
    oracle = clips.model
    module = Both(oracle.tokens, oracle.names, oracle.vocab)
    trained = dataclasses.replace(clips, run=run, model=module)
    found = values(Combinations("any", "pictures", batch=4, clips="rows").rows(trained))
    # Six questions about clips, three of them for the last frame's colour, and two about pictures.
    assert [*found] == [
        f"any_accuracy_{name}"
        for name in ("image", "text", "video", "image_text", "video_text", "image_video_text")
    ]
    assert found["any_accuracy_image"] == (1.0, 1 / 2, 2)
    assert found["any_accuracy_image_text"] == (1.0, 1 / 2, 2)
    assert found["any_accuracy_video"][0] == found["any_accuracy_video_text"][0] == 3 / 6
    assert found["any_accuracy_video_text"][1:] == (pytest.approx(5 / 6), 6)
    assert found["any_accuracy_text"] == (0.0, pytest.approx(6 / 8), 8)
    assert found["any_accuracy_image_video_text"][2] == 8


def test_a_run_that_is_asked_about_pictures_and_clips_is_tried_with_every_combination():
    run = presets.get("seed_all_demo")
    found = [one for one in evaluations(run, limit=7) if isinstance(one, Combinations)]
    assert found == [Combinations("any", "questions", clips="clips", limit=7)]
    assert not any(isinstance(one, Combinations) for one in evaluations(presets.get("seed_vqa")))
