import itertools
import json

import numpy as np
import pytest

from llama_jax.data import (
    JsonLines,
    LanguageModel,
    Loader,
    Mix,
    Prepared,
    Questions,
    Stream,
    one_pass,
    prepare,
)
from llama_jax.data.loader import merged
from llama_jax.data.mixing import endless, mixed, weighed
from llama_jax.errors import UserError
from llama_jax.text import Tokenizer

T = 32


@pytest.fixture(scope="module")
def words():
    return Tokenizer.train(["the sea and the land saw a lamb " * 9], 290)


@pytest.fixture(scope="module")
def folders(tmp_path_factory, words):
    """Short documents with one longer than a row, and documents four times as long."""
    place, rng, made = tmp_path_factory.mktemp("packing"), np.random.default_rng(0), []
    for name, longest, many in (("short", 12, 80), ("long", 48, 40)):
        sizes = [*rng.integers(1, longest, many - 1), 60]
        rows = [" ".join(rng.choice(["sea", "land", "lamb", "x", "y"], n)) for n in sizes]
        (place / f"{name}.jsonl").write_text("\n".join(json.dumps({"text": r}) for r in rows))
        source, files = JsonLines(str(place / f"{name}.jsonl")), {"tokenizer.json": words.content()}
        prepare.prepare(source, place / name, words, files, workers=1)
        made.append(Prepared(str(place / name)))
    return made


def loader(source, words, pack="split", index=0, count=1, batch=4, **options):
    stream = Stream(source, LanguageModel(T, pack=pack), batch, **options)
    return Loader({"text": stream}, words, 5, index, count)


def take(made, count):
    try:
        return [next(made)["text"] for _ in range(count)]
    finally:
        made.close()


def same(one, two):
    return all((a[name] == b[name]).all() for a, b in zip(one, two, strict=True) for name in a)


def join(parts):
    steps = zip(*parts, strict=True)
    return [{k: np.concatenate([p[k] for p in each]) for k in each[0]} for each in steps]


def segments(batches, row):
    """(ids, positions) of every segment of a row of the batch, in order."""
    for batch in batches:
        pair = np.stack([batch["tokens"][row], batch["targets"][row]], 1)
        for number in range(1, batch["segments"][row].max() + 1):
            here = batch["segments"][row] == number
            yield pair[here], batch["positions"][row][here]


def test_a_packed_stream_has_the_fields_that_it_promises(folders, words):
    made = loader(folders[0], words)
    stream = Stream(folders[0], LanguageModel(T), 4)
    [batch] = take(made, 1)
    wanted = stream.fields(words)
    assert {k: (v.shape, v.dtype.name) for k, v in batch.items()} == wanted


def test_split_rows_are_the_documents_joined_and_cut(folders, words):
    """Against a plain loop over the lane's documents."""
    rows, of, made = 40, 4, loader(folders[0], words)
    batches, flow = take(made, rows), made._flows["text"]
    [documents] = endless(flow.parts, made_key(made))
    for lane in range(of):
        joined, begins = [], []
        for row in itertools.islice((documents[i] for i in range(lane, 10**6, of)), 400):
            ids = row["tokens"]
            begins += [True] + [False] * (len(ids) - 2)
            joined += list(zip(ids[:-1], ids[1:], strict=True))
        for step, batch in enumerate(batches):
            cut = slice(step * T, step * T + T)
            pair = np.stack([batch["tokens"][lane], batch["targets"][lane]], 1)
            assert (pair == np.array(joined[cut])).all()
            new = np.array(begins[cut])
            new[0] = True
            assert (batch["segments"][lane] == np.cumsum(new)).all()
            start = np.maximum.accumulate(np.where(new, np.arange(T), 0))
            assert (batch["positions"][lane] == np.arange(T) - start).all()
        assert all((batch["loss_weights"] == 1).all() for batch in batches)


def made_key(made):
    """The seed that the loader gave to its stream."""
    from llama_jax.data.loader import _hash

    return _hash(made.seed, 0, "text")


def test_fitted_rows_never_cut_a_document_that_fits(folders, words):
    batches = take(loader(folders[0], words, "fit"), 60)
    whole = {tuple(row["tokens"].tolist()) for row in folders[0].open()}
    short, pieces = set(), []
    for pair, positions in itertools.chain(*(segments(batches, row) for row in range(4))):
        assert (positions == np.arange(len(positions))).all()
        ids = (*pair[:, 0].tolist(), int(pair[-1, 1]))
        short.add(ids) if ids in whole else pieces.append(ids)
    assert short == {ids for ids in whole if len(ids) <= T + 1}
    [long] = [ids for ids in whole if len(ids) > T + 1]
    assert set(pieces) == {long[at : at + T + 1] for at in range(0, len(long) - 1, T)}
    filled = np.mean([batch["loss_weights"].mean() for batch in batches])
    assert filled > 0.9
    assert all(((batch["segments"] > 0) == batch["loss_weights"]).all() for batch in batches)


@pytest.mark.parametrize("pack", ["split", "fit"])
def test_a_packed_stream_goes_on_to_the_token(folders, words, pack):
    mix = Mix(tuple(folders), (2.0, 1.0))
    whole = take(loader(mix, words, pack), 14)
    for at in (0, 1, 5, 9):
        first = loader(mix, words, pack)
        take(first, at)  # the thread was ahead of what was given out; the state must not be
        state = json.loads(json.dumps(first.state()))
        second = loader(mix, words, pack)
        second.restore(state)
        assert json.loads(json.dumps(second.state())) == state
        assert same(take(second, 14 - at), whole[at:])


def test_restoring_moves_a_running_stream_back(folders, words):
    made = loader(folders[0], words)
    state = made.state()
    first = [next(made)["text"] for _ in range(3)]
    made.restore(state)
    assert same(take(made, 3), first)


@pytest.mark.parametrize("pack", ["split", "fit"])
def test_any_number_of_processes_makes_the_same_batches_and_may_go_on(folders, words, pack):
    mix = Mix(tuple(folders), (2.0, 1.0))
    alone = take(loader(mix, words, pack), 9)
    hosts = [loader(mix, words, pack, i, 4) for i in range(4)]
    assert same(join([take(host, 3) for host in hosts]), alone[:3])
    state = json.loads(json.dumps(merged([host.state() for host in hosts])))
    for count in (1, 2):
        others = [loader(mix, words, pack, i, count) for i in range(count)]
        for other in others:
            other.restore(state)
        assert same(join([take(other, 6) for other in others]), alone[3:])


def test_a_share_of_the_state_is_not_enough_for_all(folders, words):
    states = [loader(folders[0], words, "split", i, 2).state() for i in range(2)]
    with pytest.raises(UserError, match="has 2 of 4 rows a batch and lacks row 2"):
        loader(folders[0], words).restore(states[0])


def test_an_epoch_has_every_document_once_and_the_next_another_order(folders):
    rows = folders[0].open()
    [documents] = endless([rows], 3)
    order = [documents[i]["tokens"].tobytes() for i in range(160)]
    every = sorted(row["tokens"].tobytes() for row in rows)
    assert sorted(order[:80]) == sorted(order[80:]) == every
    assert order[:80] != order[80:]


def test_a_mix_reads_tokens_by_weight_whatever_the_length_of_documents(folders, words):
    parts = [folder.open() for folder in folders]
    of_first = {row["tokens"].tobytes() for row in parts[0]}
    for share in (0.25, 0.8):
        documents = mixed(endless(parts, 3), weighed(parts, [share, 1 - share]), 0, 1, 3)
        read = [documents[i]["tokens"] for i in range(1000)]
        first = sum(len(ids) for ids in read if ids.tobytes() in of_first)
        assert abs(first / sum(map(len, read)) - share) < 0.03  # single documents count


def test_a_report_says_how_often_so_many_batches_read_a_source(folders, words):
    mix, batches, read = Mix(tuple(folders), (3, 1)), 100, 4 * T * 100
    [said] = loader(mix, words).report(batches)
    pairs = mix.sources[1].open().manifest.pairs
    assert "75.0% of the tokens" in said and f"read {0.25 * read / pairs:.3g} times" in said
    made = loader(folders[0], words, "fit")
    [said] = made.report(batches)
    most = float(said.partition("read at most ")[2].removesuffix(" times"))
    trained = sum(float(batch["loss_weights"].sum()) for batch in take(made, batches))
    times = trained / folders[0].open().manifest.pairs
    assert 0.9 * most < times < most


def test_a_smaller_fraction_is_part_of_a_larger_one(folders):
    rows = folders[0].open()

    def some(fraction):
        [documents] = endless([rows], 3, fraction)
        return {documents[i]["tokens"].tobytes() for i in range(200)}

    assert some(0.1) < some(0.5) < some(1.0)


def test_evaluation_reads_every_prepared_token_once(folders, words):
    stream = Stream(folders[0], LanguageModel(T), 4)
    counted = sum(float(b["loss_weights"].sum()) for b in one_pass(stream, words))
    manifest = folders[0].open().manifest
    assert counted == manifest.tokens - manifest.documents
    rows = list(one_pass(Stream(folders[0], LanguageModel(128, packed=False), 8), words))
    assert sum(float(b["loss_weights"].sum()) for b in rows) == counted


def test_what_was_prepared_anew_with_other_documents_is_refused(folders, words):
    state = loader(folders[0], words).state()
    with pytest.raises(UserError, match="not those that the run began with"):
        loader(folders[1], words).restore(state)
    with pytest.raises(UserError, match="has the packed streams"):
        loader(folders[1], words).restore({"version": 1, "seed": 5, "step": 3})


def test_what_only_packed_streams_can_do_is_refused_elsewhere(folders, words):
    mix = Mix(tuple(folders), (1, 1))
    for source, task in (
        (mix, LanguageModel(T, packed=False)),
        (mix, Questions(T)),
        (JsonLines("x.jsonl"), LanguageModel(T, pack="fit")),
    ):
        with pytest.raises(UserError, match="need prepared data and a packed LanguageModel"):
            Loader({"text": Stream(source, task, 4)}, words)
    with pytest.raises(UserError, match="pack='fitt'.*Did you mean 'fit'"):
        LanguageModel(T, pack="fitt")
    with pytest.raises(UserError, match="2 sources has 1 weights"):
        Mix(tuple(folders), (1,))
    for weight, why in (("nan", "no number"), ("inf", "not finite"), ("0", "numbers above 0")):
        with pytest.raises(UserError, match=why):
            Mix(tuple(folders), (1, float(weight)))


def test_a_damaged_shard_stops_a_running_stream_by_name(folders, words, tmp_path):
    import shutil

    copy = shutil.copytree(folders[0].path, tmp_path / "copy")
    file = copy / "tokens-00000.array_record"
    data = bytearray(file.read_bytes())
    for at in range(200, 2000, 10):
        data[at] ^= 1
    file.write_bytes(data)
    with pytest.raises(UserError, match="tokens-00000.array_record' is damaged"):
        take(loader(Prepared(str(copy)), words), 1)
