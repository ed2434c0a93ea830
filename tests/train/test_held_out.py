import json

import numpy as np
import pytest

from llama_jax.config import edit, from_json, to_json
from llama_jax.config.text import edit_text
from llama_jax.data import Loader, PlainText, Prepared, Share, Stream
from llama_jax.data.held_out import Part
from llama_jax.data.prepare import prepare
from llama_jax.data.shards import TokenRows
from llama_jax.errors import UserError
from llama_jax.evals import run_eval
from llama_jax.text.tokenizer import Tokenizer
from llama_jax.train.best import Best
from llama_jax.train.loop import train
from llama_jax.weights.orbax import saved_steps
from tests.train.tiny import text_run

SAME = 1e-6  # sums of float32 in another order


def run(text, **changes):
    held = edit_text(text_run(text), "data.text.held_out", "0.2")
    for path, value in ({"steps": 4, "eval_every": 2} | changes).items():
        held = edit(held, path, value)
    return held


@pytest.fixture(scope="module")
def whole(text, tmp_path_factory):
    """Such a run, and what came of it."""
    place = tmp_path_factory.mktemp("runs") / "whole"
    return place, train(run(text, keep_best="held_out/lm_loss"), place, progress=False)


def texts(source):
    return [row["text"] for row in source.open()]


def measured(place):
    lines = map(json.loads, (place / "metrics.jsonl").read_text().splitlines())
    return {line["step"]: line["held_out/lm_loss"] for line in lines if "held_out/lm_loss" in line}


def test_every_document_is_trained_on_or_held_out_and_none_is_both(text):
    stream = run(text).data["text"]
    learned, held = texts(stream.training), texts(stream.measured.source)
    assert 5 <= len(held) <= 20  # of 60, a fifth as far as chance allows
    assert not set(learned) & set(held)
    assert sorted(learned + held) == sorted(texts(stream.source))


def test_no_batch_holds_anything_of_a_document_that_is_held_out(text):
    held = run(text)
    words = Tokenizer.train(texts(PlainText(str(text))), 300)
    left = {tuple(words.encode(one)) for one in texts(held.data["text"].measured.source)}
    seen, loader = set(), Loader(held.data, words)
    for _ in range(60):  # more than an epoch
        batch = next(loader)["text"]
        for row, segments in zip(batch["tokens"], batch["segments"], strict=True):
            for one in range(1, segments.max() + 1):
                seen.add(words.decode(row[segments == one].tolist()))
    loader.close()
    numbers = {words.decode(list(one)).split()[1] for one in left}  # "Lamb 17 went to"
    whole = {piece.split()[1] for piece in seen if piece.startswith("Lamb ") and " went" in piece}
    assert whole and not whole & numbers


def test_what_is_held_out_does_not_depend_on_the_documents_beside_it(text, tmp_path):
    before = set(texts(Part(PlainText(str(text)), Share(0.2), "held out")))
    more = tmp_path / "more.txt"
    more.write_text("A new one.\n\n" + text.read_text().replace(" ", "  "))
    after = {
        " ".join(one.split()) for one in texts(Part(PlainText(str(more)), Share(0.2), "held out"))
    }
    assert before <= after <= before | {"A new one."}
    assert before <= set(texts(Part(PlainText(str(text)), Share(0.3), "held out")))


def test_a_run_that_goes_on_without_it_is_stopped_before_a_step(text, tmp_path):
    copy = tmp_path / "copy.txt"
    copy.write_text(text.read_text())
    train(run(copy, steps=1), tmp_path / "run", progress=False)
    copy.write_text("Lamb 7 went.")
    with pytest.raises(UserError, match="nothing held out, of 1 documents"):
        train(run(copy, steps=2), tmp_path / "run", progress=False)
    assert saved_steps(tmp_path / "run" / "checkpoints") == [1]


def test_the_loss_on_it_is_logged_before_the_first_step_and_while_training(whole):
    place, result = whole
    found = measured(place)
    assert list(found) == [0, 2, 4]
    assert found[4] < found[0]
    assert result.evaluations["held_out"]["lm_loss"] == found[4]
    assert Best.read(place) == Best(4, "held_out/lm_loss", found[4])
    row = next(row for row in run_eval(place) if row.name == "lm_perplexity")
    assert np.log(row.value) == pytest.approx(found[4], abs=SAME)
    assert "(held out)" in row.data


def test_a_run_goes_on_with_the_same_documents_held_out(whole, text, tmp_path):
    train(run(text, steps=2), tmp_path / "parts", progress=False)
    train(run(text), tmp_path / "parts", progress=False)
    assert measured(whole[0]) == measured(tmp_path / "parts")
    with pytest.raises(UserError, match=r"data.text.held_out.share was 0.2, is 0.1"):
        train(run(text, **{"data.text.held_out": 0.1}), tmp_path / "parts", progress=False)


def test_prepared_data_holds_out_the_same_documents(text, tmp_path):
    words = Tokenizer.train(texts(PlainText(str(text))), 300)
    args = (PlainText(str(text)), tmp_path / "out", words, {"tokenizer.json": words.content()})
    prepare(*args, workers=1, held_out=Share(0.2))
    prepare(*args, workers=1, held_out=Share(0.2))  # nothing is left to do, and nothing differs
    stream = run(text).data["text"]
    assert stream.measured is not None
    for part, place in ((stream.training, "out"), (stream.measured.source, "out/held_out")):
        rows = Prepared(str(tmp_path / place)).open()
        assert isinstance(rows, TokenRows)
        found = {words.decode(row["tokens"][1:-1].tolist()) for row in rows}
        assert found == set(texts(part))
    with pytest.raises(UserError, match=r"was prepared with source"):
        prepare(*args, workers=1)


def test_another_text_may_be_measured_on(text, tmp_path):
    other = tmp_path / "val.txt"
    other.write_text("Lamb 3 went to sea.\n\nThe sea saw it.")
    held = edit_text(text_run(text), "data.text.held_out", str(other))
    assert held.data["text"].held_out == PlainText(str(other))
    assert from_json(to_json(held)) == held
    assert texts(held.data["text"].training) == texts(held.data["text"].source)
    train(edit(held, "steps", 1), tmp_path / "run", progress=False)
    assert list(measured(tmp_path / "run")) == [0, 1]


@pytest.mark.parametrize(
    ("share", "said"),
    [(1.5, "a share from 0 to below 1"), (1e-9, "nothing held out, of 60 documents; give more")],
)
def test_a_share_that_cannot_be_held_out_is_refused(text, tmp_path, share, said):
    with pytest.raises(UserError, match=said):
        train(run(text, **{"data.text.held_out": share}), tmp_path, progress=False)


def test_prepared_data_says_how_it_holds_something_out(text, tmp_path):
    words = Tokenizer.train(texts(PlainText(str(text))), 300)
    files = {"tokenizer.json": words.content()}
    prepare(PlainText(str(text)), tmp_path / "out", words, files, workers=1)
    stream = run(text).data["text"]
    stream = Stream(Prepared(str(tmp_path / "out")), stream.task, 8, held_out=Share(0.1))
    with pytest.raises(UserError, match="`llama-jax prepare` --held-out 0.1"):
        Loader({"text": stream}, words)
