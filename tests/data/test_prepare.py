import json
import shutil

import pytest

from llama_jax.data import (
    JsonLines,
    LanguageModel,
    Loader,
    Parquet,
    PlainText,
    Prepared,
    Stream,
    lines,
    prepare,
    sources,
)
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
    out, make_shard, made = tmp_path / "x", prepare._Job.make, []

    def stop_at_the_fourth(job, *args):
        if len(made) == 3:
            job.path.with_name(f"{job.path.name}.unfinished").write_bytes(b"half a shard")
            raise KeyboardInterrupt
        made.append(job.path.name)
        return make_shard(job, *args)

    monkeypatch.setattr(prepare._Job, "make", stop_at_the_fourth)
    with pytest.raises(KeyboardInterrupt):
        make(source, out, words)
    with pytest.raises(UserError, match="not prepared to the end: give the same"):
        Prepared(str(out)).open()
    monkeypatch.setattr(prepare._Job, "make", lambda j, *a: made.append(1) or make_shard(j, *a))
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
    make_shard = prepare._Job.make

    def stop_at_the_fourth(job, *args):
        if job.start == 30:
            raise KeyboardInterrupt
        return make_shard(job, *args)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(prepare._Job, "make", stop_at_the_fourth)
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
    assert manifest.pop("files")
    (copy / "manifest.json").write_text(json.dumps(manifest))
    assert len(Prepared(str(copy)).open()) == 60
    assert make(source, copy, words).files is None


@pytest.mark.parametrize(
    ("size", "seen"), [(12, [*range(12)]), (40, [0, 1, 2, 3, 18, 19, 20, 21, 36, 37, 38, 39])]
)
def test_a_fingerprint_sees_all_of_a_small_file_and_pieces_of_a_large_one(
    tmp_path, monkeypatch, size, seen
):
    monkeypatch.setattr(lines, "PIECE", 4)
    monkeypatch.setattr(lines, "PIECES", 3)

    def fingerprint(*contents):
        files = [tmp_path / f"{i}" for i in range(len(contents))]
        for file, content in zip(files, contents, strict=True):
            file.write_bytes(content)
        return lines.fingerprint(files)

    data = bytes(size)
    changed = [data[:at] + b"x" + data[at + 1 :] for at in range(size)]
    assert [at for at in range(size) if fingerprint(changed[at]) != fingerprint(data)] == seen
    assert fingerprint(data, b"ab") != fingerprint(data + b"a", b"b") != fingerprint(data)


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


def test_a_damaged_manifest_is_named(copy):
    (copy / "manifest.json").write_text('{"format": "other"}')
    with pytest.raises(UserError, match="manifest.json' is not a manifest of prepared data"):
        Prepared(str(copy)).open()


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
    with prepare._locked(tmp_path / "x"):
        with pytest.raises(UserError, match="another process prepares"):
            make(source, tmp_path / "x", words)
