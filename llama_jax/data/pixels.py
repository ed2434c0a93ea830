"""What pictures and videos share: a file's bytes, and a Pillow image as it is seen."""

import functools
import os
import warnings
from pathlib import Path
from typing import Any

import numpy as np

from llama_jax.errors import UserError


def read(file: Any, kind: str, expected: str, most: int) -> tuple[bytes, str]:
    """A file's bytes and what to call it in a message.

    Args:
      file: a path, or the bytes themselves.
      kind: what it should be: "image", "video".
      expected: the formats, for messages.
      most: bytes that it may have.

    Raises:
      UserError: it is not there, no file, larger, or something else than a path and bytes.
    """
    if isinstance(file, bytes | bytearray | memoryview):
        data, what = bytes(file), f"the {kind}"
    elif isinstance(file, str | os.PathLike):
        path = Path(file)
        what = f"{kind} {str(path)!r}"
        try:
            if path.exists() and not path.is_file():  # a device may never end
                raise UserError(f"{what} is not a file; expected a file with {expected}")
            if path.stat().st_size > most:
                raise UserError(
                    f"{what} is larger than {most >> 20} MB; try a smaller version of it"
                )
            data = path.read_bytes()
        except UserError:
            raise
        except (OSError, ValueError) as error:  # ValueError: a name with a zero byte
            why = getattr(error, "strerror", None) or error
            raise UserError(
                f"{what} cannot be read ({why}); expected a file with {expected}"
            ) from None
    else:
        came = f"{'an' if kind[0] in 'aeiou' else 'a'} {kind} came as {type(file).__name__}"
        raise UserError(f"{came}; expected a path, bytes or an array")
    if len(data) > most:
        raise UserError(f"{what} is larger than {most >> 20} MB; try a smaller version of it")
    return data, what


@functools.cache
def quiet() -> None:
    """Silences Pillow's warning of large images, once: our limit is below its own.

    Not with `catch_warnings`, which is not safe in the loader's threads.
    """
    from PIL import Image

    warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)


def rgb(image: Any) -> np.ndarray:
    """A Pillow image as it is seen: turned upright, on white where it is transparent."""
    from PIL import Image, ImageOps

    if image.format in ("JPEG", "WEBP", "PNG"):  # cameras store the turn beside the pixels
        image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I"):  # 16 bits
        gray_YX = (np.asarray(image) // 256).astype(np.uint8)
        return np.ascontiguousarray(np.broadcast_to(gray_YX[..., None], (*gray_YX.shape, 3)))
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return np.asarray(image.convert("RGB"))
