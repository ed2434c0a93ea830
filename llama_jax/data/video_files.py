"""Video files to uint8 frames, within limits that are checked before and while they are decoded.

mp4 and webm go through PyAV (the extra `video`), animated GIF and WebP through Pillow. Which of
them a file is, its first bytes say, and no decoder is asked to guess: FFmpeg also knows playlists,
which name other files.
"""

import io
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from llama_jax.data.containers import cut_short
from llama_jax.data.pixels import quiet, read, rgb
from llama_jax.errors import UserError

FORMATS = "mp4, webm, or an animated GIF or WebP"
MAX_BYTES = 512 * 2**20
MAX_PIXELS = 4096 * 2304  # of a frame
MAX_FRAMES = 18_000  # ten minutes at 30 a second
MAX_SECONDS = 600.0
MAX_WORK = 40 * 10**9  # pixels of all frames: ten minutes of 1920 x 1080 at 30 a second

Pixels = Callable[[], np.ndarray]  # a frame's pixels, uint8 [Y, X, 3], converted when asked for
Shown = tuple[float, Pixels]  # when a frame is seen, in seconds


def spread(total: int, count: int) -> list[int]:
    """The middles of `count` equal pieces of `total` frames."""
    return ((np.arange(count) + 0.5) * total / count).astype(int).tolist()


def sampled(video: Any, count: int, made: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
    """`count` frames, evenly spread over a video file, as uint8 [count, Y, X, 3].

    It is decoded twice, to count its frames (what a container says of that need not be true) and to
    take some, so that only those are held.

    Args:
      video: a path, or the bytes of a file.
      count: frames to keep; a shorter video repeats some.
      made: what each becomes at once, from and to uint8 [Y, X, 3]; resized, for example.

    Raises:
      UserError: it is no video, holds no frame, ends early, is longer or larger than the limits, or
        of a codec that PyAV lacks; or PyAV is not there.
    """
    data, what = read(video, "video", FORMATS, MAX_BYTES)
    shown = _opener(data, what)
    if cut_short(data):
        raise UserError(f"{what} ends early; was it copied or downloaded whole?")
    total = sum(1 for _ in _limited(shown(), what))
    if not total:
        raise UserError(f"{what} holds no frame; expected {FORMATS}")
    wanted, found = spread(total, count), {}
    for number, (_, pixels) in enumerate(_limited(shown(), what)):
        if number in wanted:
            found[number] = made(pixels())
        if number == wanted[-1]:
            break
    return np.stack([found[number] for number in wanted])


def _opener(data: bytes, what: str) -> Callable[[], Iterator[Shown]]:
    """What shows the frames, by the first bytes."""
    if data[:4] == b"GIF8" or (data[:4] == b"RIFF" and data[8:12] == b"WEBP"):
        return lambda: _animated(data, what)
    if data[4:8] == b"ftyp":
        return lambda: _played(data, what, "mp4")
    if data[:4] == b"\x1aE\xdf\xa3":
        return lambda: _played(data, what, "webm")
    raise UserError(
        f"{what} is not a video that can be read; expected {FORMATS}; try converting it: "
        "ffmpeg -i FILE video.mp4"
    )


def _limited(frames: Iterator[Shown], what: str) -> Iterator[Shown]:
    """The frames, while they are within the limits; a decoder's complaint becomes a line."""
    number = 0
    try:
        for number, (seconds, pixels) in enumerate(frames, 1):
            _check_length(number, seconds, what)
            yield seconds, pixels
    except UserError:
        raise
    except Exception:  # whatever a hostile file makes a decoder say is not for the user's eyes
        raise UserError(
            f"{what} is damaged after {number} frames; was it copied or downloaded whole?"
        ) from None


def _played(data: bytes, what: str, form: str) -> Iterator[Shown]:
    """The frames of a file, by PyAV."""
    try:
        import av
    except ModuleNotFoundError:
        raise UserError(
            f"{what} is {form} and reading it needs PyAV; try: pip install 'llama-jax[video]'"
        ) from None
    with av.open(io.BytesIO(data), "r", format=form) as container:
        streams = container.streams.video
        if not streams:
            return
        stream = streams[0]
        if stream.codec_context is None:
            raise UserError(
                f"{what} is of a codec that PyAV {av.__version__} cannot decode; try converting "
                "it: ffmpeg -i FILE -c:v libx264 video.mp4"
            )
        width, height = stream.codec_context.width, stream.codec_context.height
        length = (container.duration or 0) / av.time_base
        _check_work(stream.frames, width, height, what)
        _check_length(stream.frames, length, what)
        work = 0
        for frame in container.decode(stream):
            work += frame.width * frame.height  # it may change on the way
            _check_frame(work, frame.width, frame.height, what)
            yield frame.time or 0.0, lambda frame=frame: _upright(frame)


def _upright(frame: Any) -> np.ndarray:
    """A frame as it is seen: telephones store the turn beside it."""
    return np.rot90(frame.to_ndarray(format="rgb24"), frame.rotation // 90)


def _animated(data: bytes, what: str) -> Iterator[Shown]:
    """The frames of a GIF or WebP, by Pillow; a frame without a duration is seen for 0.1 s."""
    from PIL import Image

    quiet()
    try:
        opened = Image.open(io.BytesIO(data), formats=("GIF", "WEBP"))
    except Image.DecompressionBombError:  # beyond our limit too
        raise UserError(
            f"{what} has frames of more than {MAX_PIXELS:,} pixels, the limit; try a smaller "
            "version of it"
        ) from None
    with opened as image:
        count = getattr(image, "n_frames", 1) if image.format == "WEBP" else 0
        _check_work(count, *image.size, what)
        _check_length(count, 0.0, what)
        seconds, number = 0.0, 0
        while True:
            try:
                image.seek(number)
            except EOFError:
                return
            number += 1
            _check_frame(number * image.size[0] * image.size[1], *image.size, what)
            yield seconds, lambda: rgb(image)
            seconds += image.info.get("duration", 100) / 1000


def _check_work(frames: int, width: int, height: int, what: str) -> None:
    _check_frame(max(frames, 1) * width * height, width, height, what)


def _check_frame(work: int, width: int, height: int, what: str) -> None:
    """Pixels of one frame, and of all so far."""
    if width * height > MAX_PIXELS:
        raise UserError(
            f"{what} has frames of {width} x {height}, more than {MAX_PIXELS:,} pixels, the limit; "
            "try a smaller version of it"
        )
    if work > MAX_WORK:
        raise UserError(
            f"{what} has more than {MAX_WORK:,} pixels in all its frames, the limit; try a smaller "
            "or shorter version of it"
        )


def _check_length(frames: int, seconds: float, what: str) -> None:
    if frames > MAX_FRAMES:
        raise UserError(f"{what} has more than {MAX_FRAMES:,} frames, the limit; try a part of it")
    if seconds > MAX_SECONDS:
        raise UserError(
            f"{what} is longer than {MAX_SECONDS:g} seconds, the limit; try a part of it"
        )
