"""Video files: which frames come of them, and what is said of those that cannot be read."""

import functools
import json
import sys

import numpy as np
import pytest

from llama_jax.data import JsonLines, Loader, Questions, Stream, video_files
from llama_jax.data.images import frames
from llama_jax.errors import UserError

from .clips import animated, filmed, numbered

CODED = 6  # of 255: by which coding a plain frame may change its shade
FILES = {"mp4": "mpeg4", "webm": "libvpx", "mov": "mpeg4", "mkv": "libvpx-vp9"}
# The matrix of a track that is shown as it was taken, and of one that is turned by a quarter.
STRAIGHT = bytes.fromhex("00010000" + "00" * 12 + "00010000" + "00" * 12 + "40000000")
TURNED = bytes.fromhex(
    "00000000" "00010000" "00000000" "ffff0000" + "00" * 16 + "40000000"
)  # fmt: skip


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("clips")
    return functools.cache(
        lambda ending, **options: filmed(
            folder / f"{len(list(folder.iterdir()))}.{ending}",
            numbered(),
            FILES[ending],
            **options,
        )
    )


def shades(video):
    return video.reshape(len(video), -1).mean(1)


@pytest.mark.parametrize("ending", FILES)
def test_frames_are_spread_evenly_over_a_file(files, ending):
    path = files(ending)
    for given in (path, str(path), path.read_bytes()):
        video = frames(given, 4)
        assert video.shape == (4, 32, 48, 3) and video.dtype == np.uint8
        np.testing.assert_allclose(shades(video), [20, 80, 140, 200], atol=CODED)


@pytest.mark.parametrize("form", ["gif", "webp"])
def test_animated_pictures_need_no_extra(form, monkeypatch):
    monkeypatch.setitem(sys.modules, "av", None)
    video = frames(animated(form, numbered(), lossless=True), 4)
    np.testing.assert_array_equal(video, numbered()[[1, 4, 7, 10]])


def test_a_short_video_repeats_frames_and_they_are_resized(files):
    video = frames(files("mp4"), 24, size=16)
    assert video.shape == (24, 16, 16, 3)
    np.testing.assert_allclose(shades(video), np.repeat(np.arange(12) * 20, 2), atol=CODED)


def test_a_telephone_that_was_turned_gives_upright_frames(tmp_path):
    half = numbered(2)
    half[:, :, :24], half[:, :, 24:] = 0, 255
    data = filmed(tmp_path / "lying.mp4", half).read_bytes()
    film, place, track = data.partition(data[data.rindex(STRAIGHT) :][:36])
    [frame] = frames(film + TURNED + track, 1)
    assert place and frame.shape == (48, 32, 3)
    assert frame[:12].mean() < CODED and frame[-12:].mean() > 255 - CODED


def refused(match, video):
    with pytest.raises(UserError, match=match) as error:
        frames(video, 4)
    assert "\n" not in str(error.value)


def test_what_is_no_video_is_refused_in_one_line(tmp_path, files):
    (tmp_path / "text.mp4").write_text("hello")
    refused(r"text\.mp4' is not a video that can be read; expected mp4", tmp_path / "text.mp4")
    refused("is not a video that can be read", b"")
    refused("is not a video that can be read", b"#EXTM3U\nfile:///etc/hostname")
    refused("cannot be read .No such file", tmp_path / "none.mp4")
    refused("is not a file", tmp_path)
    refused("came as int; expected a path", 3)
    head, segment, _ = files("webm").read_bytes().partition(b"\x18S\x80g")
    refused("is damaged after 0 frames", head + segment + b"\x83" + bytes(3))


@pytest.mark.parametrize("ending", ["mp4", "webm"])
def test_a_file_that_ends_early_is_refused(files, ending):
    data = files(ending).read_bytes()
    for end in (len(data) - 1, len(data) // 2, 40):
        refused("ends early", data[:end])


def test_a_file_whose_list_of_frames_comes_first_and_that_ends_early_is_refused(files):
    data = files("mp4", movflags="faststart").read_bytes()
    assert data.index(b"moov") < data.index(b"mdat")
    refused("ends early", data[:-30])


def test_an_animated_picture_that_ends_early_is_refused():
    for form in ("gif", "webp"):
        data = animated(form, numbered())
        refused("ends early", data[: len(data) // 2])


def test_damage_in_the_middle_is_told_with_the_frames_before_it(tmp_path):
    noise = np.random.default_rng(0).integers(0, 255, (12, 32, 48, 3)).astype(np.uint8)
    data = bytearray(filmed(tmp_path / "noise.mp4", noise).read_bytes())
    middle = len(data) * 6 // 10
    data[middle : middle + 300] = b"\xff" * 300
    refused(r"is damaged after [1-9] frames", bytes(data))


def test_a_file_without_a_frame_is_refused(tmp_path, files):
    import av

    with av.open(str(tmp_path / "sound.mp4"), "w") as container:
        stream = container.add_stream("aac", rate=8000)
        sound = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), "fltp", "mono")
        sound.sample_rate = 8000
        container.mux(stream.encode(sound))
        container.mux(stream.encode())
    refused("holds no frame", tmp_path / "sound.mp4")


def test_a_codec_that_pyav_lacks_is_named_as_the_cause(files):
    data = files("webm").read_bytes()
    refused("of a codec that PyAV .* cannot decode; try", data.replace(b"V_VP8", b"V_ZZ8"))


def test_without_the_extra_its_name_is_said(files, monkeypatch):
    monkeypatch.setitem(sys.modules, "av", None)
    refused(r"pip install 'llama-jax\[video\]'", files("mp4"))


@pytest.mark.parametrize(
    ("limit", "value", "said"),
    [
        ("MAX_BYTES", 100, "is larger than 0 MB"),
        ("MAX_PIXELS", 1000, "has frames of 48 x 32, more than 1,000 pixels"),
        ("MAX_FRAMES", 11, "has more than 11 frames"),
        ("MAX_SECONDS", 1.0, "is longer than 1 seconds"),
        ("MAX_WORK", 18_000, "more than 18,000 pixels in all its frames"),
    ],
)
def test_each_limit_is_kept(files, monkeypatch, limit, value, said):
    monkeypatch.setattr(video_files, limit, value)
    for video in (files("mp4"), files("webm"), animated("gif", numbered())):
        refused(said, video)


def test_rows_of_a_file_may_name_clips(tmp_path, tokenizer):
    rows = []
    for name in ("a.webm", "b.webm"):
        filmed(tmp_path / name, numbered(), "libvpx")
        rows.append({"video": name, "questions": ["is it dark?"], "answers": ["no"]})
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    task = Questions(length=12, per_image=1, size=16, frames=4, image="video")
    loader = Loader({"clips": Stream(JsonLines(str(tmp_path / "rows.jsonl")), task, 2)}, tokenizer)
    batch = next(loader)["clips"]
    loader.close()
    assert batch["video"].shape == (2, 4, 16, 16, 3)
    np.testing.assert_allclose(shades(batch["video"][0]), [20, 80, 140, 200], atol=CODED)
