import gzip
import json

import pytest

from llama_jax.data import JsonLines, json_rows
from llama_jax.errors import UserError


def test_an_array_of_objects_is_rows_as_lines_are(tmp_path):
    rows = [{"text": f"row {i}", "more": [{"a": "],[{"}]} for i in range(5)]
    for name, text in {
        "a.json": json.dumps(rows),
        "b.json": "\n " + json.dumps(rows, indent=2) + "\n",
        "c.ndjson": "\n".join(map(json.dumps, rows)),
    }.items():
        (tmp_path / name).write_text(text)
        assert list(JsonLines(str(tmp_path / name)).open()) == rows
    (tmp_path / "d.json.gz").write_bytes(gzip.compress(json.dumps(rows).encode()))
    assert list(JsonLines(str(tmp_path / "d.json.gz")).open()) == rows
    assert len(JsonLines(str(tmp_path)).open()) == 20  # all that a folder holds


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('[{"text": "a"},\n {"text": "b"}', "begins as a JSON array and is none from line 2"),
        ('[{"text": "a"},\n {"text" "b"}]', "none from line 2 on .*delimiter"),
        ('[{"text": "a"}] x', "none from line 1 on .Extra data"),
        ('[{"text": "a"} {"text": "b"}]', "none from line 1 on .Expecting ',' delimiter"),
        ("[1,\n 2]", "line 1 is not a JSON object"),
        ("[]", "holds no example"),
    ],
)
def test_an_array_that_is_none_is_refused_with_its_line(tmp_path, text, message):
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(UserError, match=message):
        list(JsonLines(str(tmp_path / "a.json")).open())


def test_an_array_too_large_to_be_held_is_refused_with_a_way(tmp_path, monkeypatch):
    monkeypatch.setattr(json_rows, "MOST", 10)
    (tmp_path / "a.json").write_text('[{"text": "a"}]')
    with pytest.raises(UserError, match="have to be held whole.*jq -c"):
        JsonLines(str(tmp_path / "a.json")).open()


def too_deep(*_, **__):
    """As Python's reader of JSON answers to thousands of brackets."""
    raise RecursionError


def test_what_is_nested_too_deeply_for_pythons_reader_is_refused(tmp_path, monkeypatch):
    for name in ("a.jsonl", "b.json"):
        (tmp_path / name).write_text('{"a": 1}' if name == "a.jsonl" else "[[1]]")
    lines = JsonLines(str(tmp_path / "a.jsonl")).open()
    with monkeypatch.context() as patch:
        patch.setattr(json, "loads", too_deep)
        with pytest.raises(UserError, match="line 1 is not a JSON object"):
            lines[0]
    monkeypatch.setattr(json.JSONDecoder, "raw_decode", too_deep)
    with pytest.raises(UserError, match="nested too deeply"):
        JsonLines(str(tmp_path / "b.json")).open()
