"""Whether files of video are there to their end, with containers written by hand."""

import pytest

from llama_jax.data.containers import cut_short


def box(name, body=b"", size=None):
    size = len(body) + 8 if size is None else size
    return size.to_bytes(4, "big") + name + body


def element(name, body, size=None):
    """An element of EBML whose size has eight bytes; None at the begin of all ones."""
    return bytes.fromhex(name) + (size or b"\x01" + len(body).to_bytes(7, "big")) + body


HEAD = element("1a45dfa3", b"webm")
START = box(b"ftyp", b"isom")
LARGE = (1).to_bytes(4, "big") + b"mdat" + (40).to_bytes(8, "big") + bytes(24)
WHOLE = {
    "mp4": START + box(b"mdat", bytes(30)) + box(b"moov", bytes(9)),
    "mp4 with a size of 8 bytes": START + box(b"moov") + LARGE,
    "mp4 to the end": START + box(b"moov") + box(b"mdat", bytes(9), size=0),
    "webm": HEAD + element("18538067", bytes(50)),
    "webm with something after it": HEAD + element("18538067", bytes(50)) + element("ec", bytes(9)),
    "gif": b"GIF89a" + bytes(20) + b";",
    "gif with zeros after it": b"GIF89a" + bytes(20) + b";\0\0",
    "webp": b"RIFF" + (14).to_bytes(4, "little") + b"WEBP" + bytes(10),
}


@pytest.mark.parametrize("data", WHOLE.values(), ids=WHOLE)
def test_a_whole_file_is_not_cut_short(data):
    assert not cut_short(data)


@pytest.mark.parametrize("name", ["mp4", "mp4 with a size of 8 bytes", "webm", "gif", "webp"])
def test_a_file_is_cut_short_wherever_it_ends_before_its_end(name):
    data = WHOLE[name]
    assert all(cut_short(data[:end]) for end in range(8, len(data)))


def test_a_film_without_a_list_of_its_frames_is_cut_short():
    assert cut_short(START + box(b"mdat", bytes(9)))
    assert cut_short(START + box(b"mdat", bytes(9), size=0))


def test_a_stream_that_never_knew_its_length_is_not_judged():
    live = element("18538067", bytes(9), size=b"\x01" + b"\xff" * 7)
    assert not cut_short(HEAD + live) and not cut_short((HEAD + live)[:-3])


def test_other_formats_are_not_judged():
    assert not cut_short(b"") and not cut_short(b"\x89PNG\r\n")


def test_sizes_that_lie_end_the_walk():
    for size in (0, 1, 2, 7):
        assert cut_short(START + box(b"free", size=size))
    assert cut_short(HEAD + b"\x00" * 9)
