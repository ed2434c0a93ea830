"""Dialogues about easy-VQA pictures, and clips of their shapes."""

import itertools
import random
from collections import Counter

import numpy as np
import pytest

from llama_jax.data import Loader, Questions, Stream, Tfds
from llama_jax.data.builders.easy_vqa_clips import (
    DIRECTIONS,
    FRAMES,
    KINDS,
    SIDE,
    WHITE,
    Sprite,
    cut,
    film,
    one,
    path,
    turn,
    two,
)
from llama_jax.data.builders.easy_vqa_dialogues import ASK, guesses, other, recall, refer, wish
from llama_jax.data.builders.shapes import Facts, fit_shape
from llama_jax.data.dialogue import joined
from llama_jax.data.images import frames

BLUE = Facts("circle", "blue", "small", "top left")


@pytest.fixture(scope="module")
def dialogues(data_dir):
    return Tfds("easy_vqa_dialogues", "test", data_dir=data_dir, limit=60).open()


@pytest.fixture(scope="module")
def clips(data_dir):
    return Tfds("easy_vqa_clips", "test", data_dir=data_dir, limit=30).open()


def square(color=(0, 0, 255), side=6, facts=BLUE):
    pixels = np.full((side, side, 3), color, np.uint8)
    return Sprite(pixels, np.ones((side, side), bool), facts)


def corner(frame, ground=WHITE):
    """Where a sprite of one colour begins, around the edges."""
    mask = frame.min(-1) < ground
    found = []
    for lines in (mask.any(1), mask.any(0)):
        found.append(next(i for i in range(SIDE) if lines[i] and not lines[i - 1]))
    return tuple(found)


def steps(video):
    places = np.array([corner(frame) for frame in video])
    return (np.diff(places, axis=0) + SIDE // 2) % SIDE - SIDE // 2


def test_a_dialogue_puts_earlier_turns_in_front_of_each_question():
    assert joined([("a?", "b"), ("c?", "d"), ("e?", "f")]) == ["a?", "a? b. c?", "a? b. c? d. e?"]


def test_dialogues_say_what_their_picture_shows(dialogues):
    for row in dialogues:
        assert (row["source"], row["target"]) == (row["questions"][-1], row["answers"][-1])
        assert row["source"].endswith(row["last"])
        assert len(row["questions"]) == (2 if row["kind"] == "other" else 3)
    kinds = ("wish", "recall", "guesses", "refer", "other")
    assert Counter(row["kind"] for row in dialogues) == dict.fromkeys(kinds, 12)


def test_the_same_question_for_another_picture_is_answered_by_the_one_that_is_seen(dialogues):
    shown = {row["image_id"]: row for row in dialogues if row["kind"] == "recall"}
    pairs = [row for row in dialogues if row["kind"] == "other"]
    assert all(row["image_id"] != row["earlier_id"] for row in pairs)
    fields = {question: field for field, question in ASK.items()}
    for row in pairs:
        first, question, said = row["source"].partition("?")
        answers = dict(told(shown[row["image_id"]]))
        if (field := fields[first + question]) in answers:  # two of three are told of there
            assert row["target"] == answers[field]
        assert row["answers"][0] == ("yes" if said.startswith(f" {row['target']}. ") else "no")


def told(row):
    """Field and answer of the first two turns of what is recalled."""
    fields = {question: field for field, question in ASK.items()}
    for whole, answer in zip(row["questions"][:2], row["answers"], strict=False):
        yield fields[whole.split(". ")[-1]], answer


def test_the_last_turn_cannot_be_answered_without_the_first():
    """The same picture and the same last question have several answers."""
    square = Facts("rectangle", "red", "large", "top right")

    def elsewhere(facts, chance):
        return other(facts, square, chance.choice(list(ASK)))

    for talk, least in ((wish, 4), (recall, 3), (guesses, 3), (refer, 3), (elsewhere, 3)):
        turns = [talk(BLUE, random.Random(i)) for i in range(80)]
        assert len({dialogue[-1][0] for dialogue in turns}) == 1
        counts = Counter(dialogue[-1][1] for dialogue in turns)
        assert len(counts) == least and max(counts.values()) < 60


def test_answers_of_dialogues_are_true():
    for i in range(40):
        (wished, there), (asked, said), (_, change) = wish(BLUE, random.Random(i))
        wrong = ["blue" not in wished, "circle" not in wished]
        assert there == ("no" if any(wrong) else "yes")
        assert said == {"color": "blue", "shape": "circle"}.get(asked.split()[1], "top left")
        assert (
            change
            == {(0, 0): "nothing", (1, 0): "color", (0, 1): "shape", (1, 1): "both"}[
                wrong[0], wrong[1]
            ]
        )
        first, second, last = recall(BLUE, random.Random(i))
        assert last[1] == first[1] != second[1]
        *both, (_, count) = guesses(BLUE, random.Random(i))
        right = ["blue" in both[0][0], "circle" in both[1][0]]
        assert [answer for _, answer in both] == ["yes" if r else "no" for r in right]
        assert count == ("none", "one", "both")[sum(right)]
        (wanted, _), (asked, said), (_, rest) = refer(BLUE, random.Random(i))
        assert said == getattr(BLUE, asked.removeprefix("its ").rstrip("?"))
        assert said != rest and all(
            (value in (said, rest)) == (f"its {name}" in wanted)
            for name, value in BLUE._asdict().items()
        )


def test_a_shape_moves_as_it_is_said_around_the_edges():
    for i in range(12):
        clip = one(square(), square(), random.Random(i))
        direction, speed = (answer for _, answer in clip.asked)
        expected = np.array(DIRECTIONS[direction]) * {"slowly": 1, "fast": 3}[speed]
        assert (steps(clip.video_TYXR) == expected).all()
        assert clip.caption == f"a blue circle moves {direction} {speed}"
        assert ((clip.video_TYXR.min(-1) < WHITE).sum((1, 2)) == 36).all()


def test_a_turn_is_at_a_right_angle_after_a_rest():
    for i in range(12):
        clip = turn(square(), square(), random.Random(i))
        first, then = (np.array(DIRECTIONS[answer]) * 3 for _, answer in clip.asked)
        assert first @ then == 0
        assert (steps(clip.video_TYXR) == [first] * 3 + [[0, 0]] + [then] * 3).all()


def test_of_two_shapes_the_faster_is_named_by_its_color():
    red = square((255, 0, 0), 8, Facts("rectangle", "red", "small", "top left"))
    above = set()
    for i in range(12):
        clip = two(square(side=8), red, random.Random(i))
        (_, faster), (_, slower), (_, direction) = clip.asked
        assert {faster, slower} == {"red", "blue"}
        channel = {"red": 0, "blue": 2}
        for color, speed in ((faster, 3), (slower, 1)):
            alone = np.full_like(clip.video_TYXR, WHITE)
            mine = clip.video_TYXR.argmax(-1) == channel[color]
            mine &= clip.video_TYXR.min(-1) < WHITE
            alone[mine] = 0
            assert (steps(alone) == np.array(DIRECTIONS[direction]) * speed).all()
            above.add((color, bool(mine[:, : SIDE // 2].any())))
    assert len(above) == 4  # either may be above


def test_a_single_frame_tells_nothing_of_the_direction():
    """Starts do not depend on the direction, and all places are as likely in every frame."""
    starts = {d: [path(random.Random(i), [(0, 1)])[0] for i in range(9)] for d in DIRECTIONS}
    for one_way, another in itertools.pairwise(starts.values()):
        assert np.array_equal(one_way, another)
    for frame in (0, FRAMES - 1):
        places = np.array([path(random.Random(i), [(3, 0)] * 7)[frame] % SIDE for i in range(2000)])
        for axis in (0, 1):
            counts = np.histogram(places[:, axis], 8, (0, SIDE))[0]
            assert 180 < counts.min() and counts.max() < 320  # 250 expected, 14.8 a deviation


def test_a_cut_shape_is_the_one_of_its_picture(pictures):
    for row in list(pictures.open())[:10]:
        image = np.array(frames([row["image"]], 1)[0])
        sprite = cut(image, BLUE)
        assert fit_shape(sprite.mask_YX) == fit_shape(image.min(-1) < 200)
        assert film([(sprite, np.zeros((FRAMES, 2), int))]).shape == (FRAMES, SIDE, SIDE, 3)


def test_clips_are_read_as_frames_and_have_every_kind_for_every_picture(clips):
    assert [row["kind"] for row in clips] == [*KINDS] * 10
    for row in clips:
        video = frames(row["video"], FRAMES)
        assert video.shape == (FRAMES, SIDE, SIDE, 3) and video.dtype == np.uint8
        assert (row["source"], row["target"]) == (row["questions"][0], row["answers"][0])
        assert all(word in row["caption"] for word in row["answers"][:1])
        assert (video[0] != video[-1]).any()


def test_the_task_questions_reads_both(data_dir, clips, dialogues, tokenizer):
    del clips, dialogues  # prepared by them, with these limits
    for name, field, count, limit in (
        *[("easy_vqa_clips", "video", FRAMES, 30)],
        *[("easy_vqa_dialogues", "image", 0, 60)],
    ):
        source = Tfds(name, "test", data_dir=data_dir, limit=limit)
        task = Questions(length=96, per_image=2, image=field, frames=count)
        batch = Loader({"x": Stream(source, task, 8)}, tokenizer).batch(0)["x"]
        shape = (4, FRAMES, SIDE, SIDE, 3) if count else (4, SIDE, SIDE, 3)
        assert batch[field].shape == shape and batch["loss_weights"].any(1).all()
