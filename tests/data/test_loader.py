import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from llama_jax.data import Captions, Loader, Masking, Questions, SentencePairs, Stream, one_pass
from llama_jax.errors import UserError


@pytest.fixture(scope="module")
def streams(pictures, chapters):
    return {
        "documents": Stream(chapters, SentencePairs(32), 8),
        "captions": Stream(pictures, Captions(16, mlm=Masking()), 12),
        "questions": Stream(pictures, Questions(16, per_image=2), 16),
    }


def same(one, two):
    return one.keys() == two.keys() and all(
        one[name].keys() == two[name].keys()
        and all((one[name][field] == two[name][field]).all() for field in one[name])
        for name in one
    )


def take(loader, count):
    try:
        return [next(loader) for _ in range(count)]
    finally:
        loader.close()


def test_four_hosts_see_the_rows_that_one_host_sees_in_the_same_order(streams, tokenizer):
    alone = take(Loader(streams, tokenizer, seed=3), 6)
    hosts = [take(Loader(streams, tokenizer, 3, i, 4), 6) for i in range(4)]
    for step, batch in enumerate(alone):
        shares = [host[step] for host in hosts]
        joined = {
            name: {f: np.concatenate([share[name][f] for share in shares]) for f in fields}
            for name, fields in batch.items()
        }
        assert same(joined, batch)


@pytest.mark.parametrize("at", [0, 1, 4])
def test_a_restored_loader_goes_on_as_if_never_stopped(streams, tokenizer, at):
    whole = take(Loader(streams, tokenizer), 8)
    first = Loader(streams, tokenizer)
    take(first, at)  # threads were ahead of what was given out; the state must not be
    state = json.loads(json.dumps(first.state()))
    second = Loader(streams, tokenizer)
    second.restore(state)
    assert all(map(same, take(second, 8 - at), whole[at:]))


def test_restoring_moves_a_running_loader_back(streams, tokenizer):
    loader = Loader(streams, tokenizer)
    state = loader.state()
    first = [next(loader) for _ in range(3)]
    loader.restore(state)
    assert all(map(same, take(loader, 3), first))


def test_another_process_makes_the_same_batches(pictures, tokenizer, tmp_path):
    tokenizer.save(tmp_path / "t.json")
    code = f"""
from llama_jax.data import *; from llama_jax.text import Tokenizer
stream = Stream({pictures!r}, Questions(16, per_image=2), 16)
batch = Loader({{"q": stream}}, Tokenizer.load({str(tmp_path / "t.json")!r}), seed=1).batch(9)["q"]
print(batch["id"].tolist())
"""
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True,
                           cwd=Path(__file__).parents[2], check=True)  # fmt: skip
    stream = Stream(pictures, Questions(16, per_image=2), 16)
    batch = Loader({"q": stream}, tokenizer, seed=1).batch(9)["q"]
    assert json.loads(found.stdout) == batch["id"].tolist()


def test_an_epoch_has_every_example_once_and_the_next_another_order(pictures, tokenizer):
    loader = Loader({"c": Stream(pictures, Captions(16), 8)}, tokenizer)
    ids = np.concatenate([loader.batch(s)["c"]["id"] for s in range(10)])
    assert sorted(ids[:40]) == sorted(ids[40:]) == list(range(40))
    assert ids[:40].tolist() != ids[40:].tolist() and ids[:40].tolist() != list(range(40))


def test_batches_run_on_over_the_end_of_an_epoch(pictures, tokenizer):
    loader = Loader({"c": Stream(pictures, Captions(16), 12)}, tokenizer)
    ids = np.concatenate([loader.batch(s)["c"]["id"] for s in range(10)])
    assert all(sorted(ids[e * 40 : e * 40 + 40]) == list(range(40)) for e in range(3))


def test_masks_of_an_example_change_with_the_epoch_and_not_with_its_place(pictures, tokenizer):
    def masks(batch, epochs):
        loader = Loader({"c": Stream(pictures, Captions(16, mlm=Masking()), batch)}, tokenizer)
        found = {}
        for step in range(40 * epochs // batch):
            made = loader.batch(step)["c"]
            for row, i in enumerate(made["id"].tolist()):
                found.setdefault(i, []).append(made["text"][row].tolist())
        return found

    small, large = masks(8, 2), masks(20, 2)
    assert small == large
    assert sum(one != two for one, two in small.values()) > 30


def test_seeds_change_order_and_masks(pictures, tokenizer):
    def ids(seed=0, stream_seed=0):
        stream = Stream(pictures, Captions(16), 8, seed=stream_seed)
        return Loader({"c": stream}, tokenizer, seed).batch(0)["c"]["id"].tolist()

    assert ids() == ids() and ids() != ids(seed=1) and ids() != ids(stream_seed=1)


def test_a_smaller_fraction_is_part_of_a_larger_one_and_other_questions_never_come(
    pictures, tokenizer
):
    def questions(fraction):
        stream = Stream(pictures, Questions(16, per_image=2), 16, fraction=fraction)
        evaluated = {i for b in one_pass(stream, tokenizer) for i in b["id"][b["row_valid"]]}
        loader = Loader({"q": stream}, tokenizer)
        trained = {i for s in range(60) for i in loader.batch(s)["q"]["id"]}
        assert trained <= evaluated
        return evaluated

    tenth, quarter, everything = questions(0.1), questions(0.25), questions(1.0)
    assert tenth < quarter < everything
    counts = [len(row["questions"]) for row in pictures.open()]
    owner = np.repeat(np.arange(40), counts)
    assert len({int(owner[i]) for i in tenth}) == 4  # a share of the pictures, with all questions


def test_one_pass_gives_every_example_once_and_fills_the_last_batch(pictures, tokenizer):
    stream = Stream(pictures, Captions(16, mlm=Masking()), 12)
    batches = list(one_pass(stream, tokenizer))
    assert [b["text"].shape[0] for b in batches] == [12] * 4
    ids = np.concatenate([b["id"][b["row_valid"]] for b in batches])
    assert ids.tolist() == list(range(40))
    assert batches[-1]["row_valid"].tolist() == [True] * 4 + [False] * 8
    assert (batches[-1]["mlm_weights"][4:] == 0).all()
    again = list(one_pass(stream, tokenizer, batch=12))
    assert all((a["text"] == b["text"]).all() for a, b in zip(batches, again, strict=True))


def test_hosts_share_a_pass(pictures, tokenizer):
    stream = Stream(pictures, Questions(16, per_image=2), 16)
    whole = [b["id"][b["row_valid"]] for b in one_pass(stream, tokenizer)]
    parts = [list(one_pass(stream, tokenizer, None, i, 2)) for i in range(2)]
    joined = [
        np.concatenate([b["id"][b["row_valid"]] for b in pair]) for pair in zip(*parts, strict=True)
    ]
    assert all((a == b).all() for a, b in zip(whole, joined, strict=True))


def test_what_cannot_be_shared_or_does_not_fit_is_refused(pictures, tokenizer):
    stream = Stream(pictures, Questions(16, per_image=4), 16)
    with pytest.raises(UserError, match="expected a multiple of 32; try batch=32"):
        Loader({"q": stream}, tokenizer, 0, 0, 8)
    with pytest.raises(UserError, match="fraction=0"):
        Stream(pictures, Captions(), 8, fraction=0)
    loader = Loader({"q": stream}, tokenizer, seed=1)
    with pytest.raises(UserError, match="expected the same seed"):
        loader.restore({"version": 1, "seed": 2, "step": 5})


def test_an_error_in_a_row_reaches_the_caller_as_it_is(tmp_path, tokenizer):
    from llama_jax.data import JsonLines

    (tmp_path / "x.jsonl").write_text('{"image": "no.png", "caption": "a"}')
    loader = Loader({"c": Stream(JsonLines(str(tmp_path / "x.jsonl")), Captions(), 2)}, tokenizer)
    with pytest.raises(UserError, match="no.png.*cannot be read"):
        next(loader)


def test_the_data_packages_import_neither_jax_nor_anything_slow():
    code = (
        "import sys, llama_jax.data, llama_jax.text; print(sorted({'jax', 'flax', 'grain', 'PIL', "
        "'tensorflow_datasets', 'tensorflow', 'tokenizers'} & set(sys.modules)))"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True,
                           cwd=Path(__file__).parents[2], check=True)  # fmt: skip
    assert found.stdout.strip() == "[]"
