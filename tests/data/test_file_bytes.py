import os
import random
import resource

import pytest

from llama_jax.data import JsonLines, Parquet, PlainText, file_bytes, text_files
from llama_jax.errors import UserError


@pytest.mark.parametrize("seed", range(20))
def test_lines_and_paragraphs_are_the_same_in_chunks_of_any_size(seed, monkeypatch):
    draw = random.Random(seed)
    text = bytes(draw.choice(b"ab \n\n\n\r\t") for _ in range(60))
    lines = [line for line in text.split(b"\n") if line.strip()]
    documents = [[]]
    for line in text.split(b"\n"):
        documents = [*documents[:-1], [*documents[-1], line]] if line.strip() else [*documents, []]
    documents = [b"\n".join(document) for document in documents if document]
    for size in range(1, 9):
        monkeypatch.setattr(file_bytes, "CHUNK", size)
        assert [text[b:e] for b, e in text_files.lines(text).tolist()] == lines
        assert [text[b:e] for b, e in text_files.paragraphs(text).tolist()] == documents


def test_a_byte_order_mark_is_no_part_of_the_text(tmp_path):
    (tmp_path / "a.txt").write_text("One.\n\nTwo.", encoding="utf-8-sig")
    (tmp_path / "b.txt").write_text("\n\nThree.", encoding="utf-8-sig")
    assert [row["text"] for row in PlainText(str(tmp_path)).open()] == ["One.", "Two.", "Three."]
    (tmp_path / "a.jsonl").write_text('{"text": "x"}', encoding="utf-8-sig")
    (tmp_path / "b.json").write_text('[{"text": "y"}]', encoding="utf-8-sig")
    rows = JsonLines(str(tmp_path / "*.json*")).open()
    assert [row["text"] for row in rows] == ["x", "y"]


@pytest.mark.parametrize("change", ["shrunk", "written again", "replaced", "compressed", "array"])
def test_a_file_that_changes_under_a_run_is_an_error_with_its_name(tmp_path, change):
    import gzip

    file = tmp_path / ("a.jsonl.gz" if change == "compressed" else "a.jsonl")
    pack = gzip.compress if change == "compressed" else bytes
    content = b'{"text": "one"}\n{"text": "two"}\n'
    if change == "array":
        content = b'[{"text": "one"}, {"text": "two"}]'
    file.write_bytes(pack(content))
    rows = JsonLines(str(file)).open()
    assert rows[1]["text"] == "two"
    if change == "shrunk":
        os.truncate(file, 20)
    elif change == "replaced":
        (tmp_path / "new").write_bytes(content.replace(b"two", b"three"))
        os.replace(tmp_path / "new", file)
        file_bytes._file.cache_clear()  # else what was opened before is still what is read
    else:
        file.write_bytes(pack(content.replace(b"two", b"new")))
    os.utime(file, ns=(1, 1))
    with pytest.raises(UserError, match="a.jsonl.*has changed since it was opened"):
        rows[1]


def test_a_table_that_changes_under_a_run_is_an_error_with_its_name(tmp_path):
    import pyarrow
    from pyarrow import parquet

    parquet.write_table(pyarrow.table({"text": ["one", "two"]}), tmp_path / "a.parquet")
    rows = Parquet(str(tmp_path / "a.parquet")).open()
    parquet.write_table(pyarrow.table({"text": ["one", "three"]}), tmp_path / "a.parquet")
    os.utime(tmp_path / "a.parquet", ns=(1, 1))
    with pytest.raises(UserError, match="a.parquet' has changed since it was opened"):
        rows[1]


def test_a_folder_of_more_files_than_a_process_may_open_is_read(tmp_path):
    for i in range(300):
        (tmp_path / f"{i}.txt").write_text(f"Text {i}.")
    limits, there = resource.getrlimit(resource.RLIMIT_NOFILE), len(os.listdir("/proc/self/fd"))
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (there + file_bytes.OPEN + 20, limits[1]))
        rows = PlainText(str(tmp_path)).open()
        assert {row["text"] for row in rows} == {f"Text {i}." for i in range(300)}
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
