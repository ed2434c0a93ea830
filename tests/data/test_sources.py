import json

import numpy as np
import pytest
from PIL import Image

from llama_jax.data import (
    ImageFolder,
    JsonLines,
    Mix,
    Parquet,
    PlainText,
    Prepared,
    Tfds,
    texts,
)
from llama_jax.data.images import decode
from llama_jax.data.rows import get, sentences, split_sentences
from llama_jax.data.sources import named
from llama_jax.errors import UserError


def test_rows_hold_python_values_and_the_bytes_of_pictures(pictures):
    row = pictures.open()[3]
    assert isinstance(row["questions"], list) and isinstance(row["questions"][0], str)
    assert isinstance(row["caption"], str) and isinstance(row["image_id"], int)
    assert row["image"][:4] == b"\x89PNG" and decode(row["image"]).shape == (64, 64, 3)


def test_sources_are_values():
    assert Tfds("kjv") == Tfds("kjv", "train") and hash(JsonLines("a")) == hash(JsonLines("a"))


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (Tfds("easy_vqua"), "no data set is called 'easy_vqua'.*Did you mean 'easy_vqa'"),
        (Tfds("glue/sst3"), "Did you mean 'sst2'"),
        (Tfds("cnn_dailymails"), "Did you mean 'cnn_dailymail'"),
    ],
)
def test_an_unknown_tfds_name_is_refused_with_the_nearest(source, message, monkeypatch, tmp_path):
    monkeypatch.setenv("LLAMA_JAX_DATA", str(tmp_path))
    with pytest.raises(UserError, match=message):
        source.open()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"split": "tset"}, "no split 'tset'; it has train, test. Did you mean 'test'"),
        ({"split": "train[:x"}, "train.:x"),
        ({"version": "9.0.0"}, "9.0.0 was asked for; 1.1.0 is there"),
    ],
)
def test_an_unknown_split_or_version_is_refused(pictures, change, message):
    import dataclasses

    with pytest.raises(UserError, match=message):
        dataclasses.replace(pictures, **change).open()


def test_a_slice_of_a_split_is_a_source(data_dir):
    assert len(Tfds("kjv", "train[:5]", data_dir=data_dir, limit=12).open()) == 5


def test_json_lines_are_read_by_index_and_errors_name_the_line(tmp_path):
    file = tmp_path / "rows.jsonl"
    file.write_text('{"text": "a", "image": "x.png"}\n\n{"text": "ü", "image": "sub/y.png"}\n[1]\n')
    rows = JsonLines(str(file)).open()
    assert len(rows) == 3 and rows[1]["text"] == "ü"
    assert rows[0]["image"] == tmp_path / "x.png"
    with pytest.raises(UserError, match="line 4 is not a JSON object"):
        rows[2]
    with pytest.raises(IndexError):
        rows[3]


def test_a_missing_file_is_refused_with_the_nearest(tmp_path):
    (tmp_path / "rows.jsonl").write_text("")
    with pytest.raises(UserError, match="Did you mean 'rows.jsonl'"):
        JsonLines(str(tmp_path / "row.jsonl")).open()
    with pytest.raises(UserError, match="holds no example"):
        JsonLines(str(tmp_path / "rows.jsonl")).open()
    with pytest.raises(UserError, match="holds no file that ends in .parquet"):
        Parquet(str(tmp_path)).open()


def test_plain_text_is_documents_of_sentences(tmp_path):
    (tmp_path / "a.txt").write_text("One. Two\ngoes on! Three?\n\n \nAnother document.\n")
    (tmp_path / "b.txt").write_text("Third.")
    rows = PlainText(str(tmp_path)).open()
    assert [row["sentences"] for row in rows] == [
        ["One.", "Two goes on!", "Three?"], ["Another document."], ["Third."],
    ]  # fmt: skip
    assert [row["document"] for row in rows] == ["a.txt:0", "a.txt:1", "b.txt:0"]
    (tmp_path / "b.txt").write_bytes(b"\xff\xfe1")
    with pytest.raises(UserError, match="not UTF-8"):
        PlainText(str(tmp_path)).open()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('He said. "Go!" Then he left.', ["He said.", '"Go!"', "Then he left."]),
        ("Mr. Smith met J. S. Bach. They spoke.", ["Mr. Smith met J. S. Bach.", "They spoke."]),
        ("It is e.g. this. etc. and so on", ["It is e.g. this. etc. and so on"]),
        ("你好。再见！", ["你好。", "再见！"]),
        ("   ", []),
    ],
)
def test_sentences_end_where_a_reader_would_end_them(text, expected):
    assert split_sentences(text) == expected


def test_an_image_folder_has_classes_and_captions(tmp_path):
    for name in ("cat/1.png", "cat/2.jpg", "big_dog/1.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.new("RGB", (2, 2)).save(tmp_path / name)
    caption = {"file": "cat/2.jpg", "caption": "a cat on a mat", "mood": "calm"}
    (tmp_path / "captions.jsonl").write_text(json.dumps(caption))
    rows = list(ImageFolder(str(tmp_path)).open())
    assert [(r["label"], r["label_name"], r["caption"]) for r in rows] == [
        (0, "big_dog", "big dog"), (1, "cat", "cat"), (1, "cat", "a cat on a mat"),
    ]  # fmt: skip
    assert rows[2]["mood"] == "calm" and decode(rows[2]["image"]).shape == (2, 2, 3)
    (tmp_path / "captions.jsonl").write_text(json.dumps({"file": "cat/3.jpg"}))
    with pytest.raises(UserError, match="'cat/3.jpg'.*Did you mean 'cat/2.jpg'"):
        ImageFolder(str(tmp_path)).open()


def test_an_image_folder_without_pictures_is_refused(tmp_path):
    with pytest.raises(UserError, match="holds no picture"):
        ImageFolder(str(tmp_path)).open()


def test_fields_are_found_by_path_and_missing_ones_named():
    row = {"translation": {"en": "a", "de": "b"}, "text": "One. Two."}
    assert get(row, "translation.de") == "b"
    with pytest.raises(UserError, match="no field 'txet'; it has translation, text.*'text'"):
        get(row, "txet")
    assert sentences(row) == ["One.", "Two."]
    assert sentences({"sentences": ["a", "b"], "text": "x"}) == ["a", "b"]


def test_texts_are_all_strings_of_a_source(tmp_path):
    (tmp_path / "x.jsonl").write_text('{"a": "one", "b": ["two", {"c": "three"}], "n": 4}')
    assert list(texts(JsonLines(str(tmp_path / "x.jsonl")))) == ["one", "two", "three"]


def test_arrays_stay_arrays(tmp_path):
    from llama_jax.data.tfds import _native

    row = _native(
        {"v": np.zeros((2, 3), np.uint8), "s": np.array([b"a", "b"], object), "n": np.int64(3)}
    )
    assert row["v"].shape == (2, 3) and row["s"] == ["a", "b"] and row["n"] == 3


def test_a_path_or_a_name_stands_for_a_source(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("texts/a.txt", "kjv/a.txt", "photos/cats/1.png", "book", "rows.jsonl"):
        file = tmp_path / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("{}")
    assert named("texts") == PlainText("texts") and named("book") == PlainText("book")
    assert named("photos") == ImageFolder("photos") and named("rows.jsonl") == JsonLines(
        "rows.jsonl"
    )
    assert named("missing.txt") == PlainText("missing.txt") and named("./x") == PlainText("./x")
    # A run directory may well be called kjv.
    assert named("kjv") == Tfds("kjv") and named("glue/sst2") == Tfds("glue/sst2")


def test_many_files_compressed_or_not_are_one_source(tmp_path):
    import gzip

    import pyarrow

    lines = [json.dumps({"text": f"row {i}"}).encode() for i in range(6)]
    (tmp_path / "a.jsonl").write_bytes(b"\n".join(lines[:2]) + b"\r\n\r\n")
    (tmp_path / "b.jsonl.gz").write_bytes(gzip.compress(b"\n".join(lines[2:4])))
    with pyarrow.output_stream(str(tmp_path / "c.jsonl.zst"), compression="zstd") as file:
        file.write(b"\n".join([*lines[4:], b"oops"]))
    rows = JsonLines(str(tmp_path / "*.jsonl*")).open()
    assert [rows[i]["text"] for i in (5, 0, 3, 2, 1, 4)] == [f"row {i}" for i in (5, 0, 3, 2, 1, 4)]
    with pytest.raises(UserError, match=r"c.jsonl.zst' line 3 is not a JSON object"):
        rows[6]
    with pytest.raises(UserError, match="no file matches"):
        JsonLines(str(tmp_path / "d*.jsonl")).open()
    whole = (tmp_path / "b.jsonl.gz").read_bytes()
    (tmp_path / "b.jsonl.gz").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match="b.jsonl.gz' cannot be decompressed"):
        list(JsonLines(str(tmp_path / "*.jsonl*")).open())


def test_texts_of_many_files_are_documents(tmp_path):
    (tmp_path / "a.txt").write_text("\n\nOne.\n\n\n\nTwo.\n \n")
    (tmp_path / "b.md").write_text("Drei\nvier.")
    rows = PlainText(str(tmp_path / "*.*")).open()
    assert [row["text"] for row in rows] == ["One.", "Two.", "Drei\nvier."]


def test_text_is_checked_across_chunks_and_the_byte_is_named(tmp_path, monkeypatch):
    from llama_jax.data import file_bytes

    monkeypatch.setattr(file_bytes, "CHUNK", 4)
    (tmp_path / "a.txt").write_text("abcü de\n\nüüf")
    assert [row["text"] for row in PlainText(str(tmp_path / "a.txt")).open()] == ["abcü de", "üüf"]
    (tmp_path / "a.txt").write_bytes("abcüdef".encode() + b"\xff!")
    with pytest.raises(UserError, match=r"not UTF-8 text \(byte 8\)"):
        PlainText(str(tmp_path / "a.txt")).open()


def test_parquet_is_read_by_row_group(tmp_path):
    import pyarrow
    from pyarrow import parquet

    for name, start in (("a", 0), ("b", 5)):
        table = pyarrow.table({"text": [f"t{i}" for i in range(start, start + 5)], "n": [1] * 5})
        parquet.write_table(table, tmp_path / f"{name}.parquet", row_group_size=2)
    rows = Parquet(str(tmp_path / "*.parquet")).open()
    assert len(rows) == 10 and rows[7] == {"text": "t7", "n": 1}
    assert [row["text"] for row in rows] == [f"t{i}" for i in range(10)]
    assert Parquet(str(tmp_path / "a.parquet"), ("text",)).open()[4] == {"text": "t4"}
    with pytest.raises(UserError, match="no column 'txt'; it has text, n. Did you mean 'text'"):
        Parquet(str(tmp_path / "a.parquet"), ("txt",)).open()
    (tmp_path / "a.parquet").write_bytes(b"PAR1 torn")
    with pytest.raises(UserError, match="a.parquet' is no readable Parquet file"):
        Parquet(str(tmp_path / "a.parquet")).open()


def test_a_name_stands_for_patterns_tables_and_mixes(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "prepared").mkdir()
    (tmp_path / "prepared/manifest.json").write_text("{}")
    assert named("prepared") == Prepared("prepared")
    assert named("c4/*.jsonl.gz") == JsonLines("c4/*.jsonl.gz")
    assert named("x.parquet") == Parquet("x.parquet")
    assert named("books/*.txt.zst") == PlainText("books/*.txt.zst")
    assert named("a/b=3,c=0.5") == Mix((Prepared("a/b"), Prepared("c")), (3, 0.5))
    assert named(" a=1e-3 , b = 1") == Mix((Prepared("a"), Prepared("b")), (1e-3, 1))
    assert named("year=2024/*.parquet") == Parquet("year=2024/*.parquet")
    (tmp_path / "corpus/year=2024").mkdir(parents=True)
    assert named("corpus/year=2024") == PlainText("corpus/year=2024")
    assert named("corpus/lang=de.jsonl") == JsonLines("corpus/lang=de.jsonl")
    assert named("/corpus/a=3,~/b=1") == Mix((Prepared("/corpus/a"), Prepared("~/b")), (3, 1))


def test_files_are_taken_for_what_their_endings_say(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("c4/en.00.json.gz", "c4/*.JSON", "x.ndjson"):
        assert named(name) == JsonLines(name)
    for name in ("logs/a.ndjson", "tables/y/a.parquet", "notes/a.md", "mixed/a.txt", "mixed/b.json",
                 "sheets/a.csv", "old/.hidden.jsonl"):  # fmt: skip
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("x")
    assert named("logs") == JsonLines("logs") and named("tables") == Parquet("tables")
    assert named("notes") == PlainText("notes") and named("old") == PlainText("old")
    with pytest.raises(UserError, match=r"several kinds \(1 .txt, 1 .json\); name one kind by"):
        named("mixed")
    for name, way in {
        "a.csv": "DataFrame.to_parquet", "b/*.tar": "unpack it", "c.pdf": "take the text out",
        "d.csv.gz": "DataFrame.to_parquet", "sheets": "holds .csv files, which are not read",
    }.items():  # fmt: skip
        with pytest.raises(UserError, match=way):
            named(name)


def test_a_folder_of_texts_is_read_with_the_folders_in_it_and_the_rest_is_counted(tmp_path):
    for name in ("a.txt", "y/b.txt", "y/c.md", ".git/d.txt", "y/e.rst", "f.log"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(name)
    rows = PlainText(str(tmp_path)).open()
    assert [row["document"] for row in rows] == ["a.txt:0", "y/b.txt:0", "y/c.md:0"]
    assert rows.notes == [
        f"{str(tmp_path)!r}: left out are 2 files (1 .log, 1 .rst); text ends in .txt or .md"
    ]


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("a=3,b", "'b'"),
        ("a,b=1", "'a'"),
        ("a=3,b=-1", "'b=-1'"),
        ("a=3, b=0", "'b=0'"),
        ("a=3,b=1,", "''"),
        ("a=three,b=1", "'a=three'"),
        ("a=3,=1", "'=1'"),
        ("a=nan,b=1", "'a=nan'"),
        ("a=inf", "'a=inf'"),
        ("a=", "'a='"),
        ("corpus/lang=de", "'corpus/lang=de'"),
    ],
)
def test_no_part_of_a_mix_is_left_out_in_silence(text, part):
    with pytest.raises(
        UserError, match=f"^{part} in .* is no folder with its weight, .*expected numbers"
    ):
        named(text)


def test_a_damaged_picture_is_found_on_opening_or_left_out_on_request(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 255, (40, 40, 3), np.uint8)
    for i in range(20):
        place = tmp_path / ("cats" if i < 3 else "dogs") / f"{i:02}.jpg"
        place.parent.mkdir(exist_ok=True)
        Image.fromarray(pixels).save(place)
    file = tmp_path / "cats/01.jpg"
    file.write_bytes(file.read_bytes()[:400])
    with pytest.raises(UserError, match=r"cats/01.jpg' is not an image .*damaged='skip' leaves"):
        ImageFolder(str(tmp_path)).open()
    rows = ImageFolder(str(tmp_path), damaged="skip").open()
    assert len(rows) == 19 and rows[1]["file"] == "cats/02.jpg" and rows[-1]["label"] == 1
    assert "1 of 20 pictures are damaged and left out ('cats/01.jpg')" in rows.notes[-1]
    with pytest.raises(UserError, match="is not one of refuse, skip"):
        ImageFolder(str(tmp_path), damaged="keep")  # pyright: ignore
