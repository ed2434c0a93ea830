import inspect
import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from llama_jax.data.images import MAX_PIXELS, decode, frames
from llama_jax.errors import UserError


def encoded(array, fmt="PNG", **options):
    file = io.BytesIO()
    Image.fromarray(array).save(file, fmt, **options)
    return file.getvalue()


def claimed(width, height):
    """A PNG without most of its pixels: whoever decodes it before looking at its size fails."""

    def chunk(kind, data):
        body = kind + data
        return struct.pack(">I", len(data)) + body + struct.pack(">I", zlib.crc32(body))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    body = zlib.compress(b"\0" * 1000)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", body) + chunk(b"IEND", b"")
    )


@pytest.mark.parametrize("fmt", ["PNG", "GIF", "WEBP", "JPEG"])
def test_the_four_formats_are_read(fmt):
    options = {"lossless": True} if fmt == "WEBP" else {}
    image = np.full((5, 7, 3), (255, 0, 0), np.uint8)
    found = decode(encoded(image, fmt, **options))
    assert found.shape == (5, 7, 3) and found.dtype == np.uint8
    assert np.abs(found.astype(int) - image).max() <= 3  # JPEG is not exact


def test_a_large_picture_is_refused_by_its_size_before_it_is_decoded():
    with pytest.raises(UserError, match=r"100 x 90, has more than 8,999 pixels, the limit"):
        decode(claimed(100, 90), max_pixels=8999)
    with pytest.raises(UserError, match="is not an image that can be read"):
        decode(claimed(100, 90), max_pixels=9000)


def test_what_is_over_the_limit_of_the_library_is_as_large_to_us(monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    with pytest.raises(UserError, match="has more than 67,108,864 pixels"):
        decode(claimed(9, 9))


def test_there_is_a_pixel_limit_that_can_be_set_and_is_named():
    assert inspect.signature(decode).parameters["max_pixels"].default == MAX_PIXELS == 8192 * 8192
    with pytest.raises(UserError, match=r"4 x 3, has more than 10 pixels"):
        decode(encoded(np.zeros((3, 4, 3), np.uint8)), max_pixels=10)
    with pytest.raises(UserError, match=r"4 x 3, has more than 10 pixels"):
        decode(Image.new("RGB", (4, 3)), max_pixels=10)


@pytest.mark.parametrize("data", [b"", b"not an image", b"\x89PNG\r\n\x1a\n" + b"x" * 99,
                                  claimed(100, 100)])  # fmt: skip
def test_what_is_no_image_is_refused_without_the_decoders_words(data):
    with pytest.raises(UserError) as error:
        decode(data)
    assert "expected PNG, JPEG, WebP or GIF" in str(error.value)
    assert "\n" not in str(error.value) and "PIL" not in str(error.value)
    assert error.value.__suppress_context__


def test_other_formats_are_refused(tmp_path):
    Image.new("RGB", (3, 3)).save(tmp_path / "x.bmp")
    with pytest.raises(UserError, match=r"x\.bmp.*is not an image that can be read"):
        decode(tmp_path / "x.bmp")


def test_missing_files_folders_and_devices_are_refused(tmp_path):
    with pytest.raises(UserError, match="No such file"):
        decode(tmp_path / "no.png")
    for path in (tmp_path, "/dev/null"):
        with pytest.raises(UserError, match="is not a file"):
            decode(path)
    with pytest.raises(UserError, match="came as int"):
        decode(3)


def test_images_are_resized_and_gray_becomes_three_channels():
    assert decode(np.zeros((5, 9), np.uint8), 4).shape == (4, 4, 3)
    assert decode(np.ones((2, 2, 1), np.float32)).tolist() == [[[255] * 3] * 2] * 2


def test_transparent_pixels_are_seen_on_white():
    image = np.zeros((2, 2, 4), np.uint8)
    image[0, 0] = (255, 0, 0, 255)
    found = decode(encoded(image))
    assert found[0, 0].tolist() == [255, 0, 0] and found[1, 1].tolist() == [255, 255, 255]

    assert (decode(image) == found).all()  # arrays are seen as files are


@pytest.mark.parametrize(
    ("array", "expected"),
    [
        (np.array([[True, False]]), [255, 0]),
        (np.array([[7, 255]], np.int64), [7, 255]),
        (np.array([[0.0, 0.5, 1.0]]), [0, 128, 255]),
        (np.array([[-0.01, 1.1]], np.float32), [0, 255]),  # as resampling leaves them
    ],
)
def test_numbers_of_an_array_mean_what_their_type_says(array, expected):
    assert decode(array)[0, :, 0].tolist() == expected


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (
            np.array([[0, 300]], np.int16),
            "int16 has numbers from 0 to 300; whole numbers .* 0..255",
        ),
        (np.array([[-1, 3]]), "from -1 to 3"),
        (np.array([[0, 65535]], np.uint16), "from 0 to 65535"),
        (np.array([[0.0, 254.0]]), "floats are taken as 0..1; divide them by 255"),
        (np.array([[-2.1, 2.6]]), "undo what normalised them"),
        (np.array([[0.0, np.nan]]), "from nan to nan"),
    ],
)
def test_arrays_of_other_numbers_are_refused_and_never_wrap(array, message):
    with pytest.raises(UserError, match=message):
        decode(array)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_a_photo_taken_sideways_is_turned_upright(kind):
    image = Image.new("RGB", (4, 8), "white")
    exif = Image.Exif()
    exif[0x0112] = 6
    file = io.BytesIO()
    image.save(file, kind, exif=exif)
    assert decode(file.getvalue()).shape == (4, 8, 3)


def test_frames_are_the_middles_of_equal_pieces():
    video = np.arange(10, dtype=np.uint8)[:, None, None, None] * np.ones((1, 2, 2, 3), np.uint8)
    assert frames(video, 5)[:, 0, 0, 0].tolist() == [1, 3, 5, 7, 9]
    assert frames(video[:2], 4)[:, 0, 0, 0].tolist() == [0, 0, 1, 1]
    assert frames(video, 2, size=6).shape == (2, 6, 6, 3)
    with pytest.raises(UserError, match="a video of shape"):
        frames(video[:0], 2)
