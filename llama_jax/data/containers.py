"""Whether a video file is there to its end, by the sizes that its container states.

Decoders go on with what is left of a file that was cut, and say nothing. Each of these formats says
near the beginning of a part how long it is.

Sources: ISO/IEC 14496-12, section 4.2 (boxes); RFC 8794 (EBML) and RFC 9559 (Matroska); the GIF89a
specification, section 27 (trailer); the WebP container specification (RIFF).
"""

SEGMENT = 0x18538067  # the element of Matroska that holds all others
TRAILER = b";"


def cut_short(data: bytes) -> bool:
    """Whether a file ends before what it says is in it; False for formats not known here."""
    if data[:4] == b"GIF8":
        return not data.rstrip(b"\0").endswith(TRAILER)
    if data[:4] == b"RIFF":
        return len(data) < 8 + int.from_bytes(data[4:8], "little")
    if data[4:8] == b"ftyp":
        return _boxes(data)
    return data[:4] == b"\x1aE\xdf\xa3" and _elements(data)


def _boxes(data: bytes) -> bool:
    """Of mp4: each outer box begins with its size in 4 bytes, or 1, its name and 8 bytes."""
    place, seen = 0, set()
    while place + 8 <= len(data):
        size, name = int.from_bytes(data[place : place + 4], "big"), data[place + 4 : place + 8]
        seen.add(name)
        if size == 1:
            size = int.from_bytes(data[place + 8 : place + 16].ljust(8, b"\xff"), "big")
        elif size == 0:  # to the end, wherever that is
            return b"moov" not in seen
        place += max(size, 8)
    # Where frames are, often the last, and the frames: a file may end between two boxes.
    return place != len(data) or not {b"moov", b"mdat"} <= seen


def _elements(data: bytes) -> bool:
    """Of webm: the outer elements, each an id, a size, both of variable length, and its bytes."""
    place, segment = 0, False
    while place < len(data):
        name, place = _number(data, place, keep=True)
        size, place = _number(data, place, keep=False)
        segment |= name == SEGMENT
        if size is None:  # a live stream, which never knew its length
            return not segment
        place += size
    return place > len(data) or not segment


def _number(data: bytes, place: int, keep: bool) -> tuple[int | None, int]:
    """A number whose leading zeros say how long it is, and where it ends; all ones say "unknown".

    An id is read with its leading one, `keep`.
    """
    first = data[place] if place < len(data) else 0
    width = 9 - first.bit_length()
    value = int.from_bytes(data[place : place + width], "big")
    ones = (1 << 7 * width) - 1
    if keep:
        return value, place + width
    return (None if value & ones == ones else value & ones), place + width
