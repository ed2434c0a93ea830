"""Files and arrays to uint8 pixels, within limits that are checked before anything is decoded.

`decode` and `frames` make pixels of whatever comes; `Pictures` keeps those of a source, and `light`
its texts.
"""

import io
import os
from typing import Any

import numpy as np

from llama_jax.data.fields import Fields
from llama_jax.data.pixels import quiet, read, rgb
from llama_jax.data.rows import Rows, get
from llama_jax.data.video_files import sampled, spread
from llama_jax.errors import UserError

FORMATS = ("PNG", "JPEG", "WEBP", "GIF")
MAX_PIXELS = 64 * 2**20  # 8192 x 8192: 200 MB as RGB
MAX_BYTES = 64 * 2**20

OVERSHOOT = 0.5  # by which resampling may leave 0..1; numbers beyond mean something else
CACHE_BYTES = 512 * 2**20  # decoded pictures of one source, size and field are kept below this
LIGHT_ROWS = 200_000  # rows of one source whose texts are kept in memory,
LIGHT_BYTES = 2048  # and pictures that are not larger than this


def decode(image: Any, size: int | None = None, max_pixels: int = MAX_PIXELS) -> np.ndarray:
    """An image as uint8 [Y, X, 3].

    Args:
      image: a path, the bytes of a file, a Pillow image, or an array [Y, X] or [Y, X, 1|3|4] of
        whole numbers in 0..255, floats in 0..1, or bools. What is transparent, in a file or by an
        array's fourth colour, is seen on white.
      size: resize to size x size (the aspect is not kept); None leaves it.
      max_pixels: refuse larger images, before they are decoded.

    Raises:
      UserError: it is no image, of another format, too large, or an array of other numbers.
    """
    from PIL import Image

    quiet()
    if isinstance(image, np.ndarray):
        return _resize(_from_array(image), size)
    if isinstance(image, Image.Image):
        _check_pixels(image.size, "the image", max_pixels)
        return _resize(rgb(image), size)
    data, what = read(image, "image", _formats(), MAX_BYTES)
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as opened:
            _check_pixels(opened.size, what, max_pixels)
            pixels_YXR = rgb(opened)
    except UserError:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):  # beyond our limit too
        raise UserError(_too_large(what, max_pixels)) from None
    except Exception:  # whatever a hostile file makes a decoder say is not for the user's eyes
        raise UserError(
            f"{what} is not an image that can be read; expected {_formats()}; "
            "try opening and saving it again with an image program"
        ) from None
    return _resize(pixels_YXR, size)


def frames(video_TYXR: Any, count: int, size: int | None = None) -> np.ndarray:
    """`count` frames, evenly spread over the video, as uint8 [count, Y, X, 3].

    Each is the middle of one of `count` equal pieces; a shorter video repeats frames.

    Args:
      video_TYXR: an array of frames [T, Y, X, R], a sequence of what `decode` takes, or a video
        file: its path or its bytes (see `video_files`).
      count: frames to keep.
      size: resize each to size x size; None leaves them.

    Raises:
      UserError: there is no frame, or a file cannot be read.
    """
    if isinstance(video_TYXR, str | os.PathLike | bytes | bytearray | memoryview):
        return sampled(video_TYXR, count, lambda pixels_YXR: decode(pixels_YXR, size))
    if not hasattr(video_TYXR, "__len__"):
        raise UserError(
            f"a video came as {type(video_TYXR).__name__}; expected a path, bytes, an array or a "
            "list of pictures"
        )
    total = len(video_TYXR)
    if total == 0 or (isinstance(video_TYXR, np.ndarray) and video_TYXR.ndim != 4):
        shape = getattr(video_TYXR, "shape", (total,))
        raise UserError(f"a video of shape {tuple(shape)} came; expected [frames, Y, X, colours]")
    return np.stack([decode(video_TYXR[t], size) for t in spread(total, count)])


class Pictures:
    """Decoded, resized pictures or clips of a source, kept in memory if they fit.

    The limit is `CACHE_BYTES` for a source, size and field; larger ones are decoded every time.
    """

    def __init__(self, rows: Rows, field: str, size: int, frames: int = 0):
        """Decodes nothing yet."""
        self.rows, self.field, self.size, self.frames = rows, field, size, frames
        shape = (len(rows), *([frames] if frames else []), size, size, 3)
        keep = np.prod(shape, dtype=np.int64) <= CACHE_BYTES
        self.kept = np.empty(shape, np.uint8) if keep else None
        self.ready = np.zeros(len(rows), bool)

    @classmethod
    def of(cls, rows: Rows, field: str, size: int, frames: int = 0) -> "Pictures":
        """The one that tasks over the same rows share."""
        key = ("pictures", field, size, frames)
        if key not in rows.memo:
            rows.memo[key] = cls(rows, field, size, frames)
        return rows.memo[key]

    def __call__(self, indices: np.ndarray) -> np.ndarray:
        """The pixels, uint8 [I, Y, X, 3], or [I, T, Y, X, 3] for clips."""
        if self.kept is None:
            return np.stack([self._decode(i) for i in indices])
        for i in indices[~self.ready[indices]]:
            self.kept[i] = self._decode(i)
            self.ready[i] = True
        return self.kept[indices]

    def _decode(self, index: int) -> np.ndarray:
        row = light(self.rows, int(index))
        if self.field not in row:
            row = self.rows[int(index)]
        value = get(row, self.field, self.rows.name)
        if self.frames:
            return frames(value, self.frames, self.size)
        return decode(value, self.size)


def picture_fields(count: int, size: int, frames: int = 0) -> Fields:
    """The field that `Pictures` fills: `image`, or `video` if there are frames."""
    shape = (count, *([frames] if frames else []), size, size, 3)
    return {stream_name(frames): (shape, "uint8")}


def stream_name(frames: int) -> str:
    """The field that holds the pixels."""
    return "video" if frames else "image"


def light(rows: Rows, index: int) -> dict[str, Any]:
    """An example without large pictures, kept in memory once read."""
    known = rows.memo.setdefault("light", {})
    row = known.get(index)
    if row is None:
        row = {k: v for k, v in rows[index].items() if not _heavy(v)}
        if len(known) < LIGHT_ROWS:
            known[index] = row
    return row


def _heavy(value: Any) -> bool:
    return isinstance(value, np.ndarray) or (isinstance(value, bytes) and len(value) > LIGHT_BYTES)


def _to_bytes(image: np.ndarray) -> np.ndarray:
    """The numbers of an array as uint8, by what they mean; never wrapped round."""
    if image.dtype == np.uint8:
        return image
    if image.dtype == bool:
        return image.astype(np.uint8) * 255
    low, high = float(image.min()), float(image.max())
    if np.issubdtype(image.dtype, np.integer) and low >= 0 and high <= 255:
        return image.astype(np.uint8)
    if np.issubdtype(image.dtype, np.floating):
        if -OVERSHOOT <= low and high <= 1 + OVERSHOOT:
            return np.clip(np.round(image * 255), 0, 255).astype(np.uint8)
        way = "floats are taken as 0..1; divide them by 255, or undo what normalised them"
    else:
        way = "whole numbers are taken as 0..255; scale them first"
    raise UserError(f"an image array of {image.dtype} has numbers from {low:g} to {high:g}; {way}")


def _from_array(image: np.ndarray) -> np.ndarray:
    if image.ndim == 2:
        image = image[..., None]
    if image.ndim != 3 or image.shape[-1] not in (1, 3, 4) or 0 in image.shape:
        raise UserError(
            f"an image array of shape {image.shape} came; expected [Y, X, 3], [Y, X, 1] or [Y, X]"
        )
    image = _to_bytes(image)
    if image.shape[-1] == 4:
        from PIL import Image

        return rgb(Image.fromarray(image))
    return np.ascontiguousarray(np.broadcast_to(image, (*image.shape[:2], 3)))


def _resize(image_YXR: np.ndarray, size: int | None) -> np.ndarray:
    from PIL import Image

    if size is None or image_YXR.shape[:2] == (size, size):
        return image_YXR
    resized = Image.fromarray(image_YXR).resize((size, size), Image.Resampling.BILINEAR)
    return np.asarray(resized)


def _check_pixels(size: tuple[int, int], what: str, max_pixels: int) -> None:
    if size[0] * size[1] > max_pixels:
        raise UserError(_too_large(f"{what}, {size[0]} x {size[1]},", max_pixels))


def _too_large(what: str, max_pixels: int) -> str:
    return f"{what} has more than {max_pixels:,} pixels, the limit; try a smaller version of it"


def _formats() -> str:
    return "PNG, JPEG, WebP or GIF"
