"""Every lane of a packed stream has its share of every source, and all of its documents."""

import itertools
import json

import grain
import numpy as np
import pytest

from llama_jax.data import JsonLines, LanguageModel, Loader, Mix, Prepared, Stream, prepare
from llama_jax.data.mixing import endless, mixed
from llama_jax.text import Tokenizer

T = 32


@pytest.fixture(scope="module")
def words():
    return Tokenizer.train(["the sea and the land saw a lamb " * 9], 290)


@pytest.fixture(scope="module")
def even(tmp_path_factory, words):
    """Documents of 182 tokens, of 62, and the id that fills them."""
    place, made, letters = tmp_path_factory.mktemp("even"), [], []
    for letter, size in (("q", 182), ("z", 62)):
        text = letter * (size - 3)  # the tokenizer adds a blank, and the two ends
        path, files = place / f"{letter}.jsonl", {"tokenizer.json": words.content()}
        path.write_text(f"{json.dumps({'text': text})}\n" * 40)
        found = prepare.prepare(JsonLines(str(path)), place / letter, words, files, workers=1)
        assert found.tokens == 40 * size
        made.append(Prepared(str(place / letter)))
        letters.append(words.encode(letter)[-1])
    return made, letters


@pytest.mark.parametrize("of", [1, 2, 3, 4, 8])
def test_every_lane_reads_its_share_of_each_source(even, words, of):
    """This mix takes a document of each in turn, so half the lanes could have met each alone."""
    (folders, letters), share, steps = even, 0.746, 200
    stream = Stream(Mix(tuple(folders), (share, 1 - share)), LanguageModel(T), batch=of)
    loader = Loader({"text": stream}, words)
    batches = [next(loader)["text"] for _ in range(steps)]
    loader.close()
    target_BT = np.concatenate([batch["targets"] for batch in batches], axis=1)
    first_B, second_B = ((target_BT == letter).sum(1) for letter in letters)
    one_document = 181 / (steps * T)  # a lane stops in the middle of one
    assert (abs(first_B / (first_B + second_B) - share) < one_document).all()


@pytest.mark.parametrize("weights", [(1, 1), (3, 1), (0.3, 5, 1), (1e-3, 1)])
def test_lanes_turn_to_a_source_by_its_weight_and_not_all_at_once(weights):
    of, turns = 8, 200
    sources = [grain.MapDataset.source([source]).repeat() for source in range(len(weights))]
    lanes = [mixed(sources, weights, lane, of, 3) for lane in range(of)]
    source_LK = np.array([[lane[k] for k in range(turns)] for lane in lanes])
    for source, weight in enumerate(weights):
        share, chosen_LK = weight / sum(weights), source_LK == source
        # What the sources before it leave over is one document more or less, each time.
        assert (abs(chosen_LK.sum(1) - share * turns) <= 1 + source).all()
        if len(weights) == 2:
            assert (abs(chosen_LK.sum(0) - share * of) <= 1).all()


def test_no_document_is_read_twice_before_all_are_even_by_more_lanes_than_there_are():
    of, epochs = 8, 3
    rows = [[f"{source}{i}" for i in range(10, 10 + n)] for source, n in enumerate((3, 20))]
    lanes = [mixed(endless(rows, 3), (1, 2), lane, of, 3) for lane in range(of)]
    read = [[lane[k] for k in range(60)] for lane in lanes]
    for source, documents in enumerate(rows):
        mine = [[row for row in lane if row[0] == str(source)] for lane in read]
        in_turn = list(itertools.chain(*zip(*mine, strict=False)))
        for epoch in range(epochs):
            some = in_turn[epoch * len(documents) : (epoch + 1) * len(documents)]
            assert sorted(some) == documents
