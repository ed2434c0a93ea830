import errno
import json
import os
import shutil

import numpy as np
import pytest
from array_record.python import array_record_module

from llama_jax.data import (
    JsonLines,
    LanguageModel,
    Loader,
    Mix,
    Parquet,
    PlainText,
    Prepared,
    Stream,
    prepare,
    sources,
    text_files,
    workers,
)
from llama_jax.data.folder import locked
from llama_jax.errors import UserError
from llama_jax.text import Tokenizer
from llama_jax.text.digest import digest

TEXTS = [f"Lamb {i} saw " + "the sea and the land, " * (i % 9) + "twice." for i in range(60)]


@pytest.fixture(scope="module")
def words():
    return Tokenizer.train(TEXTS, 300)


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    path = tmp_path_factory.mktemp("text") / "lambs.jsonl"
    path.write_text("\n".join(json.dumps({"text": text}) for text in TEXTS))
    return JsonLines(str(path))


@pytest.fixture(autouse=True)
def small_shards(monkeypatch):
    monkeypatch.setattr(prepare, "LEAST", 10)
    monkeypatch.setattr(prepare, "MOST", 10)


def make(source, out, words, **options):
    files = {"tokenizer.json": words.content()}
    return prepare.prepare(source, out, words, files, **{"workers": 1, **options})


@pytest.fixture(scope="module")
def whole(source, words, tmp_path_factory):
    out = tmp_path_factory.mktemp("whole") / "lambs"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(prepare, "MOST", 10)
        patch.setattr(prepare, "LEAST", 10)
        make(source, out, words)
    return out


@pytest.fixture
def copy(whole, tmp_path):
    return shutil.copytree(whole, tmp_path / "copy")


def test_every_document_comes_back_with_its_bounds(whole, words):
    rows = Prepared(str(whole)).open()
    assert len(rows) == 60 and len(rows.manifest.shards) == 6
    for row, text in zip(rows, TEXTS, strict=True):
        ids = row["tokens"].tolist()
        assert ids == [words.bos, *words.encode(text), words.eos]
    assert rows.manifest.tokens == sum(len(row["tokens"]) for row in rows)


@pytest.mark.slow
def test_two_workers_write_the_same_bytes_as_one(source, words, whole, tmp_path):
    found = make(source, tmp_path / "two", words, workers=2)
    assert found.shards == Prepared(str(whole)).open().manifest.shards


def test_an_interrupted_preparation_goes_on_and_ends_with_the_same(
    source, words, whole, tmp_path, monkeypatch
):
    out, make_shard, made = tmp_path / "x", workers.Job.make, []

    def stop_at_the_fourth(job, *args):
        if len(made) == 3:
            job.path.with_name(f"{job.path.name}.unfinished").write_bytes(b"half a shard")
            raise KeyboardInterrupt
        made.append(job.path.name)
        return make_shard(job, *args)

    monkeypatch.setattr(workers.Job, "make", stop_at_the_fourth)
    with pytest.raises(KeyboardInterrupt):
        make(source, out, words)
    with pytest.raises(UserError, match="not prepared to the end: give the same"):
        Prepared(str(out)).open()
    monkeypatch.setattr(workers.Job, "make", lambda j, *a: made.append(1) or make_shard(j, *a))
    found = make(source, out, words)
    assert len(made) == 6  # three before, three after
    assert found == Prepared(str(whole)).open().manifest
    assert not list(out.glob("*.unfinished"))
    assert make(source, out, words) == found and len(made) == 6


@pytest.mark.parametrize(
    ("harm", "said"),
    [
        (lambda f: f.unlink(), "tokens-00003.array_record' is missing"),
        (lambda f: f.write_bytes(b""), "tokens-00003.array_record' is empty"),
        (
            lambda f: f.write_bytes(f.read_bytes()[:-999]),
            r"00003.array_record' is torn \([\d,]+ of",
        ),
    ],
)
def test_a_bad_shard_is_named_and_made_anew(source, words, copy, whole, harm, said):
    harm(copy / "tokens-00003.array_record")
    with pytest.raises(UserError, match=said):
        Prepared(str(copy)).open()
    told = []
    assert make(source, copy, words, say=told.append) == Prepared(str(whole)).open().manifest
    assert "it is made anew" in told[0] and len(told) == 2
    assert len(Prepared(str(copy)).open()) == 60


def test_a_flipped_bit_is_never_taken_for_a_token(source, words, copy, whole):
    file = copy / "tokens-00002.array_record"
    good = [row["tokens"].tolist() for row in Prepared(str(whole)).open()]
    data, refused = file.read_bytes(), 0
    for at in range(40, 1200, 83):  # over the records; the rest of the file is padding
        file.write_bytes(data[:at] + bytes([data[at] ^ 4]) + data[at + 1 :])
        try:
            rows = Prepared(str(copy)).open()
            assert [row["tokens"].tolist() for row in rows] == good
        except UserError as error:
            assert "tokens-00002.array_record' is damaged" in str(error)
            refused += 1
    assert refused > 5
    make(source, copy, words)
    assert file.read_bytes() == data


def test_another_tokenizer_is_refused_with_both_digests(whole, words):
    other = Tokenizer.train(TEXTS, 310)
    stream = {"text": Stream(Prepared(str(whole)), LanguageModel(16), 2)}
    short = digest(words)[:12], digest(other)[:12]
    with pytest.raises(UserError, match=f"tokenizer {short[0]}.*the run has {short[1]}"):
        Loader(stream, other)
    with pytest.raises(UserError, match=short[0]):
        Loader({"text": Stream(Prepared(str(whole)), LanguageModel(16, packed=False), 2)}, other)


def test_a_folder_of_other_data_is_left_alone(source, words, copy, tmp_path):
    before = {p.name: p.read_bytes() for p in copy.iterdir()}
    (tmp_path / "other.jsonl").write_text('{"text": "a"}\n' * 60)
    with pytest.raises(UserError, match="was prepared with source .*lambs.*other.jsonl"):
        make(JsonLines(str(tmp_path / "other.jsonl")), copy, words)
    with pytest.raises(UserError, match="was prepared with tokenizer"):
        make(source, copy, Tokenizer.train(TEXTS, 310))
    assert {p.name: p.read_bytes() for p in copy.iterdir()} == before


def write_jsonl(path, texts):
    path.write_text("\n".join(json.dumps({"text": text}) for text in texts))


def write_plain(path, texts):
    path.write_text("\n\n".join(texts))


def write_parquet(path, texts):
    import pyarrow
    from pyarrow import parquet

    parquet.write_table(pyarrow.table({"text": texts}), path, row_group_size=7)


@pytest.mark.parametrize(
    ("kind", "name", "write"),
    [
        (JsonLines, "x.jsonl", write_jsonl),
        (PlainText, "x.txt", write_plain),
        (Parquet, "x.parquet", write_parquet),
    ],
)
def test_a_source_that_has_changed_is_refused_though_it_has_as_many_rows(
    words, tmp_path, monkeypatch, kind, name, write
):
    path, source = tmp_path / name, kind(str(tmp_path / name))
    write(path, TEXTS)
    whole = make(source, tmp_path / "whole", words)
    make_shard = workers.Job.make

    def stop_at_the_fourth(job, *args):
        if job.rows.start == 30:
            raise KeyboardInterrupt
        return make_shard(job, *args)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(workers.Job, "make", stop_at_the_fourth)
        make(source, tmp_path / "begun", words)
    write(path, [text.replace("land", "sand") for text in TEXTS])
    for place in ("whole", "begun"):
        before = {p.name: p.read_bytes() for p in (tmp_path / place).iterdir()}
        said = f"{name}' has changed since '.*{place}' was prepared from it.*restore it"
        with pytest.raises(UserError, match=said):
            make(source, tmp_path / place, words)
        assert {p.name: p.read_bytes() for p in (tmp_path / place).iterdir()} == before
    write(path, TEXTS)  # at another time, which is no change
    assert make(source, tmp_path / "begun", words) == whole


def test_a_folder_that_was_prepared_before_files_were_noted_is_gone_on_with(source, words, copy):
    manifest = json.loads((copy / "manifest.json").read_text())
    assert manifest.pop("files") and manifest.pop("digest")
    (copy / "manifest.json").write_text(json.dumps(manifest))
    assert len(Prepared(str(copy)).open()) == 60
    assert make(source, copy, words).files is None


@pytest.mark.parametrize(
    ("size", "seen"), [(12, [*range(12)]), (40, [0, 1, 2, 3, 18, 19, 20, 21, 36, 37, 38, 39])]
)
def test_a_fingerprint_sees_all_of_a_small_file_and_pieces_of_a_large_one(
    tmp_path, monkeypatch, size, seen
):
    monkeypatch.setattr(text_files, "PIECE", 4)
    monkeypatch.setattr(text_files, "PIECES", 3)

    def fingerprint(*contents):
        files = [tmp_path / f"{i}" for i in range(len(contents))]
        for file, content in zip(files, contents, strict=True):
            file.write_bytes(content)
        return text_files.fingerprint(files)

    data = bytes(size)
    changed = [data[:at] + b"x" + data[at + 1 :] for at in range(size)]
    assert [at for at in range(size) if fingerprint(changed[at]) != fingerprint(data)] == seen
    assert fingerprint(data, b"ab") != fingerprint(data + b"a", b"b") != fingerprint(data)


def test_a_folder_whose_begin_failed_may_be_begun_with_another_field(tmp_path, words):
    path, out = tmp_path / "rows.jsonl", tmp_path / "out"
    path.write_text('{"other": "one"}\n{"other": "two"}')
    with pytest.raises(UserError, match="has no field 'text'"):
        make(JsonLines(str(path)), out, words)
    assert not out.exists()
    assert make(JsonLines(str(path)), out, words, field="other").documents == 2
    out.joinpath("manifest.json").unlink()
    (out / "mine").write_text("x")
    with pytest.raises(UserError, match="has no field 'text'"):
        make(JsonLines(str(path)), out, words)
    assert (out / "mine").exists()


def test_rows_without_text_are_counted_and_a_source_without_any_is_refused(tmp_path, words):
    path = tmp_path / "gaps.jsonl"
    path.write_text('{"text": "one"}\n{"text": " "}\n{"text": null}\n{"text": "two"}')
    found = make(JsonLines(str(path)), tmp_path / "gaps", words)
    assert (found.documents, found.empty) == (2, 2)
    path.write_text('{"text": ""}')
    with pytest.raises(UserError, match="holds no text in any of its 1 rows"):
        make(JsonLines(str(path)), tmp_path / "none", words)


def test_a_field_that_is_not_there_is_answered_with_the_nearest(source, tmp_path, words):
    with pytest.raises(UserError, match="has no field 'txt'.*mean 'text'"):
        make(source, tmp_path / "x", words, field="txt")


def test_a_manifest_of_something_else_is_named_and_left_alone(source, words, copy):
    (copy / "manifest.json").write_text('{"format": "other"}')
    with pytest.raises(UserError, match="manifest.json' is not a manifest of prepared data"):
        Prepared(str(copy)).open()
    with pytest.raises(UserError, match="format is 'other'.*give another folder"):
        make(source, copy, words)


def test_a_trained_tokenizer_is_kept_and_the_same_again(source, copy, words, tmp_path):
    assert digest(prepare.trained(source, 300, None, copy)) == digest(words)
    assert prepare.trained(source, 310, None, tmp_path / "new").vocab == 310


def test_prepared_data_has_no_text_to_train_a_tokenizer_on(whole):
    with pytest.raises(UserError, match="holds tokens and no text.*--set tokenizer="):
        next(sources.texts(Prepared(str(whole))))


def test_a_tokenizer_has_one_digest_in_every_process_and_any_other_has_another(words, tmp_path):
    words.save(tmp_path / "t.json")
    assert digest(Tokenizer.load(tmp_path / "t.json")) == digest(words)
    assert digest(Tokenizer.train(TEXTS[:30], 300)) != digest(words)


def test_a_folder_can_be_prepared_by_one_process_at_a_time(source, words, tmp_path):
    with locked(tmp_path / "x"):
        with pytest.raises(UserError, match="another process prepares"):
            make(source, tmp_path / "x", words)


def edited(**changes):
    return lambda value: value.update(changes)


def shards_edited(**changes):
    return lambda value: value["shards"][1].update(changes)


def reshaped(value):
    value["shards"][1]["documents"] += 5
    value["documents"] += 5


EDITS = {
    "fewer ids": (edited(vocab=200), "its content has changed"),
    "ids as text": (edited(vocab="300"), "vocab is '300'"),
    "another dtype": (edited(dtype="<u4"), "dtype '<u4'"),
    "no dtype": (edited(dtype="O"), "dtype 'O'"),
    "more documents": (edited(documents=5000), "documents is 5000, the shards have 60"),
    "more in a shard": (reshaped, "has 15 documents and 0 empty rows, of 10"),
    "fewer tokens": (shards_edited(tokens=3), "has 3 tokens in 10 documents"),
    "a shard outside": (shards_edited(file="../mine/tokens-00001.array_record"), "no shard's name"),
    "a shard of no rows": (shards_edited(file="tokens-00009.array_record"), "rows that are not th"),
    "a shard twice": (shards_edited(file="tokens-00000.array_record"), "names a shard twice"),
    "a shard less": (lambda value: value["shards"].pop(), "names 5 shards of 6"),
    "a number for a shard": (lambda value: value["shards"].append(7), "7 is no shard"),
    "no shards": (lambda value: value.pop("shards"), "lists no shards"),
    "shards of no rows": (edited(shard_rows=0), "shard_rows 0"),
    "rows without end": (edited(rows=10**30), "names 6 shards of"),
    "yes for rows": (edited(rows=True), "rows is True"),
    "another version": (edited(version="9"), "its content has changed"),
}


@pytest.mark.parametrize("sealed", [True, False], ids=["", "of an older folder"])
@pytest.mark.parametrize(("edit", "said"), EDITS.values(), ids=EDITS)
def test_a_manifest_edited_by_hand_is_named_and_made_anew(
    source, words, copy, whole, edit, said, sealed
):
    value = json.loads((copy / "manifest.json").read_text())
    edit(value)
    if not sealed:
        del value["digest"]
        if said == "its content has changed":  # which nothing else says
            return
    (copy / "manifest.json").write_text(json.dumps(value))
    with pytest.raises(UserError, match=f"manifest.json' is damaged .*{said}.*give the same"):
        Prepared(str(copy)).open()
    told = []
    assert make(source, copy, words, say=told.append) == Prepared(str(whole)).open().manifest
    assert "is damaged" in told[0] and "all shards are made anew" in told[0]
    files = {path.name: path.read_bytes() for path in whole.iterdir()}
    assert {path.name: path.read_bytes() for path in copy.iterdir()} == files


@pytest.mark.parametrize("content", [b"", b'{"format": "llama_', b"\xff", b"[" * 10**5, b"[1]"])
def test_a_torn_manifest_is_made_anew_and_one_without_shards_left_alone(
    source, words, copy, tmp_path, content
):
    (copy / "manifest.json").write_bytes(content)
    with pytest.raises(UserError, match="manifest.json' is damaged .*give the same"):
        Prepared(str(copy)).open()
    make(source, copy, words)
    assert len(Prepared(str(copy)).open()) == 60
    (tmp_path / "app").mkdir()
    (tmp_path / "app/manifest.json").write_bytes(content)
    (tmp_path / "app/page.html").write_text("")
    with pytest.raises(UserError, match="of something else.*give another folder"):
        make(source, tmp_path / "app", words)
    assert (tmp_path / "app/manifest.json").read_bytes() == content


def test_what_an_older_manifest_says_of_the_tokenizer_is_mended(source, words, copy, whole):
    value = json.loads((copy / "manifest.json").read_text())
    del value["digest"]
    (copy / "manifest.json").write_text(json.dumps(value | {"vocab": 200}))
    assert make(source, copy, words) == Prepared(str(whole)).open().manifest


def test_shards_and_drafts_that_belong_to_nothing_are_removed(source, words, copy, whole):
    (copy / "manifest.json").unlink()
    for name in (
        *("tokens-00017.array_record", "tokens-00002.array_record.77.unfinished"),
        *("manifest.json.unfinished.77.unfinished", "tokenizer.json.draft"),
    ):
        (copy / name).write_bytes(b"of another time")
    make(source, copy, words)
    assert {path.name for path in copy.iterdir()} == {path.name for path in whole.iterdir()}


@pytest.mark.parametrize(
    "left",
    [
        (".lock",),
        (".lock", "tokenizer.json", "merges.txt", "manifest.json.draft"),
        ("manifest.json.unfinished",),
        ("manifest.json.unfinished.draft",),
        (".lock", "tokenizer.json", "manifest.json.77.unfinished"),
        ("manifest.json.unfinished.77.unfinished",),
        ("tokens-00000.array_record",),
        ("tokens-00000.array_record.1a2b.unfinished", "tokenizer.json"),
    ],
)
def test_a_folder_that_was_begun_is_known_for_it_and_not_for_a_folder_of_text(tmp_path, left):
    for name in left:
        (tmp_path / name).write_bytes(b"")
    assert sources.named(str(tmp_path)) == Prepared(str(tmp_path))
    with pytest.raises(UserError, match="was not prepared to the end: give the same `llama-jax"):
        Prepared(str(tmp_path)).open()


def test_a_lock_beside_texts_makes_no_prepared_folder(tmp_path):
    for name in (".lock", "a.txt"):
        (tmp_path / name).write_text("a")
    assert sources.named(str(tmp_path)) == PlainText(str(tmp_path))


@pytest.mark.parametrize("value", [5, 0, False, {"en": "a"}, [1, 2], ["a", 5]])
def test_a_field_that_holds_no_text_is_named_with_its_row(tmp_path, words, value):
    path, rows = tmp_path / "num.jsonl", [{"text": "a"}, {"text": value}]
    path.write_text("\n".join(map(json.dumps, rows)))
    with pytest.raises(UserError, match="num.jsonl', row 1 holds .* in the field 'text'; expect"):
        make(JsonLines(str(path)), tmp_path / "x", words)
    with pytest.raises(UserError, match="document 1 holds .* in the field 'text'"):
        LanguageModel(8).prepare(JsonLines(str(path)).open(), words, np.arange(2))


def test_a_row_without_text_is_told_both_fields_that_were_looked_for(tmp_path, words):
    (tmp_path / "notext.jsonl").write_text('{"body": "a"}')
    source = JsonLines(str(tmp_path / "notext.jsonl"))
    with pytest.raises(UserError, match="row 0 has no field 'text' and no 'sentences'; it has bod"):
        make(source, tmp_path / "x", words)
    with pytest.raises(UserError, match="it has body; say which to read: --field"):
        prepare.trained(source, 300, None, tmp_path / "y")


def test_what_is_prepared_already_is_not_prepared_again(whole, words, tmp_path):
    source = Prepared(str(whole))
    with pytest.raises(UserError, match="lambs' is prepared already.*--set data.text.source="):
        make(source, tmp_path / "x", words)
    with pytest.raises(UserError, match="is prepared already"):
        prepare.trained(Mix((source,), (1.0,)), 300, None, tmp_path / "x")


@pytest.mark.parametrize("workers", [0, -2])
def test_less_than_one_worker_is_refused(source, words, tmp_path, workers):
    with pytest.raises(UserError, match=f"workers={workers}; expected 1 or more"):
        make(source, tmp_path / "x", words, workers=workers)
    assert not (tmp_path / "x").exists()


def test_a_place_that_cannot_be_a_folder_is_refused_with_the_reason(source, words, tmp_path):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(UserError, match="file' cannot be written .a file has this.*give a folder"):
        make(source, tmp_path / "file", words)
    with pytest.raises(UserError, match=r"cannot be written \(Not a directory\); give a folder"):
        make(source, tmp_path / "file/below", words)
    assert (tmp_path / "file").read_text() == "mine"


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_is_answered_with_making_room(source, words, tmp_path, monkeypatch, number):
    def full(*_):
        raise OSError(number, "no room")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(UserError, match=r"x' cannot be written \(no room\); make room there"):
        make(source, tmp_path / "x", words)


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO])
def test_what_array_record_says_of_the_disk_is_one_line_and_no_draft_stays(
    source, words, tmp_path, monkeypatch, number
):
    class Writer:
        def __init__(self, path, options):
            self.path = path
            (tmp_path / "x" / path).write_bytes(b"half")

        def write(self, record):
            pass

        def close(self):
            said = f"write() failed: {os.strerror(number)}; writing {self.path}; at byte 102400"
            raise RuntimeError(said)

    monkeypatch.setattr(array_record_module, "ArrayRecordWriter", Writer)
    way = "make room there" if number == errno.ENOSPC else "give a folder that can be written"
    said = rf"x' cannot be written \(write\(\) failed: {os.strerror(number)}\); {way}"
    with pytest.raises(UserError, match=said):
        make(source, tmp_path / "x", words)
    assert not list((tmp_path / "x").glob("tokens-*"))


def test_the_same_source_by_another_path_goes_on(source, words, tmp_path, monkeypatch):
    (tmp_path / "texts").mkdir()
    shutil.copy(source.path, tmp_path / "texts" / "lambs.jsonl")
    monkeypatch.chdir(tmp_path)
    first = make(JsonLines("texts/lambs.jsonl"), tmp_path / "out", words)
    again = [
        JsonLines("./texts/../texts/lambs.jsonl"),
        JsonLines(str(tmp_path / "texts/lambs.jsonl")),
    ]
    for same in again:
        assert make(same, tmp_path / "out", words).shards == first.shards
    (tmp_path / "other.jsonl").write_bytes((tmp_path / "texts/lambs.jsonl").read_bytes())
    with pytest.raises(UserError, match="was prepared with source"):
        make(JsonLines("other.jsonl"), tmp_path / "out", words)


def test_a_source_that_cannot_be_read_is_not_taken_for_the_folder(
    source, words, tmp_path, monkeypatch
):
    def fail(*_):
        raise OSError(errno.EIO, "Input/output error")

    for place in ("llama_jax.data.json_rows.joined", "llama_jax.data.prepare.fingerprint"):
        with monkeypatch.context() as patch:
            patch.setattr(place, fail)
            with pytest.raises(UserError, match=r"lambs.jsonl' cannot be read \(Input/output err"):
                make(source, tmp_path / "x", words)
    with monkeypatch.context() as patch:
        patch.setattr("llama_jax.data.text_files.Pieces.__getitem__", fail)
        with pytest.raises(UserError, match=r"lambs.jsonl' cannot be read \(Input/output error"):
            make(source, tmp_path / "x", words)
