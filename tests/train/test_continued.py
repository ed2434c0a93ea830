import dataclasses
import json

import pytest

from llama_jax.config import Change, edit, from_json, to_json
from llama_jax.data import Loader, Mix, Prepared
from llama_jax.data.loader import Past
from llama_jax.data.prepare import prepare
from llama_jax.data.sources import PlainText
from llama_jax.errors import UserError
from llama_jax.text.tokenizer import Tokenizer
from llama_jax.train.continued import continued, parsed
from llama_jax.train.loop import train
from tests.train.tiny import text_run

CHANGES = {"optimizer.rate": "0.002", "accumulate": 2, "model.stack.remat": "block"}


def run(text, steps=2, **changes):
    made = edit(text_run(text, **changes), "steps", steps)
    return edit(made, "data.text.task.packed", False)


def wide(text, steps=2):
    return edit(run(text, steps), "data.text.batch", 16)  # two micro-batches of eight devices


def lines(place):
    return {
        line["step"]: line
        for line in map(json.loads, (place / "metrics.jsonl").read_text().splitlines())
    }


def changed(run, **kwargs):
    return continued(run, run, 3, kwargs, lambda run: run.steps)[0]


def test_what_changes_is_noted_and_stays_and_the_optimizer_goes_on(text, tmp_path):
    train(wide(text, 3), tmp_path / "plain", progress=False)
    train(wide(text), tmp_path / "run", progress=False)
    with pytest.raises(UserError, match="accumulate=4 leaves 4 rows"):  # and it is not kept
        train(wide(text, 3), tmp_path / "run", progress=False, continue_with={"accumulate": 4})
    train(wide(text, 3), tmp_path / "run", progress=False, continue_with=CHANGES)
    found, plain = lines(tmp_path / "run"), lines(tmp_path / "plain")
    # Micro-batches sum in another order, and draw other dropout.
    assert found[3]["loss"] == pytest.approx(plain[3]["loss"], abs=0.05)
    assert [found[n]["rate"] for n in (2, 3)] == pytest.approx([1e-2, 2e-3])
    written = from_json((tmp_path / "run" / "run.json").read_text())
    assert written.history == (
        Change(2, "optimizer.rate", 1e-2, 2e-3),
        Change(2, "accumulate", 1, 2),
        Change(2, "model.stack.remat", "none", "block"),
    )
    # The command that began the run goes on with them.
    train(wide(text, 4), tmp_path / "run", progress=False)
    assert lines(tmp_path / "run")[4]["rate"] == pytest.approx(2e-3)
    assert from_json((tmp_path / "run" / "run.json").read_text()).history == written.history
    with pytest.raises(UserError, match=r"other settings: optimizer.weight_decay was 0.1"):
        train(edit(wide(text, 5), "optimizer.weight_decay", 0.2), tmp_path / "run", progress=False)


def test_a_field_may_change_again_and_back(text):
    once = changed(run(text), accumulate="2")
    command = run(text)
    same, _ = continued(command, once, 5, {"accumulate": 2}, lambda run: 0)
    assert same == once  # nothing changed, nothing is noted
    twice, _ = continued(command, once, 5, {"accumulate": 4}, lambda run: 0)
    assert [c.after for c in twice.history] == [2, 4] and twice.accumulate == 4
    assert continued(command, twice, 9, {}, lambda run: 0)[0] == twice
    assert from_json(to_json(twice)) == twice


@pytest.mark.parametrize(
    ("path", "value", "said"),
    [
        ("seed", "3", "all that is drawn would be drawn anew.*what may change is optimizer.rate"),
        ("model.width", "32", "weights that are saved would be of another model"),
        ("optimizer.b1", "0.5", "the state that is saved is of these settings"),
        ("optimizer", "muon", "the state that is saved is of these settings"),
        ("data.text.held_out", "0.1", "what is held out would have been learned"),
        ("data.text.task.length", "8", "its rows would be others"),
        ("steps", "9", "give it as an option of its own, --steps VALUE"),
        ("optimizer.rat", "9", "no 'rat' in 'optimizer.rat'.*Did you mean 'rate'"),
        ("accumulate", "0", "accumulate=0: give 1 or more"),
    ],
)
def test_a_change_that_may_not_be_is_refused_with_its_reason(text, path, value, said):
    with pytest.raises(UserError, match=said):
        changed(run(text), **{path: value})


def test_a_run_whose_warmup_began_at_nothing_goes_on_so(text):
    command = edit(run(text), "optimizer.schedule.warmup", 4)
    written = json.loads(to_json(command))
    del written["optimizer"]["schedule"]["begin"]  # as older versions wrote it
    old = from_json(json.dumps(written))
    assert float(old.optimizer.rate_at(9)(0)) == 0
    assert continued(command, old, 2, {}, lambda run: 0)[0] == old
    assert float(command.optimizer.rate_at(9)(0)) == pytest.approx(command.optimizer.rate / 4)


def test_options_without_a_value_or_a_run_to_go_on_with_are_refused(text, tmp_path):
    assert parsed(["a.b=1=2"]) == {"a.b": "1=2"}
    with pytest.raises(UserError, match="has no '='"):
        parsed(["optimizer.rate"])
    with pytest.raises(UserError, match="holds no checkpoint to continue with accumulate changed"):
        train(run(text), tmp_path / "new", progress=False, continue_with={"accumulate": 2})


def test_with_another_batch_an_epoch_still_reads_every_document_once(text):
    words = Tokenizer.train(["Lamb 7 went to the sea"] * 9, 300)
    streams, past = run(text).data, {"text": Past(1, 0, 8)}
    first = Loader(streams, words)
    seen = [i for _ in range(3) for i in next(first)["text"]["id"]]
    wide = {"text": dataclasses.replace(streams["text"], batch=12)}
    second = Loader(wide, words, past=past)
    second.restore(first.state())
    seen += [i for _ in range(2) for i in next(second)["text"]["id"]]
    state = json.loads(json.dumps(second.state()))
    third = Loader(wide, words, past=past)  # and goes on once more
    third.restore(state)
    seen += [i for _ in range(1) for i in next(third)["text"]["id"]]
    assert len(seen) == 60 and sorted(seen) == list(range(60))
    assert next(second)["text"]["id"].tolist() != next(third)["text"]["id"].tolist()
    for loader in (first, second, third):
        loader.close()


def test_another_source_begins_at_its_begin(text, tmp_path):
    words = Tokenizer.train(["Lamb 7 went to the sea"] * 9, 300)
    first = Loader(run(text).data, words)
    next(first)
    other = tmp_path / "other.txt"
    other.write_text(text.read_text().replace("Lamb", "Wolf"))
    streams = edit(run(text), "data.text.source", str(other)).data
    second, fresh = Loader(streams, words, past={"text": Past(1, 1, 8)}), Loader(streams, words)
    second.restore(first.state())
    assert second.step == 1
    assert next(second)["text"]["id"].tolist() == next(fresh)["text"]["id"].tolist()
    for loader in (first, second, fresh):
        loader.close()


def test_another_mixture_of_prepared_data_is_dealt_anew_and_can_be_gone_on_with(text, tmp_path):
    words = Tokenizer.train(["Lamb 7 went to the sea"] * 9, 300)
    files = {"tokenizer.json": words.content()}
    for name in "ab":
        prepare(PlainText(str(text)), tmp_path / name, words, files, workers=1)
    parts = tuple(Prepared(str(tmp_path / name)) for name in "ab")
    stream = edit(run(text), "data.text.task.packed", True).data["text"]
    before, after = (
        {"text": dataclasses.replace(stream, source=Mix(parts, weights))}
        for weights in ((1.0, 1.0), (3.0, 1.0))
    )
    first, past = Loader(before, words), {"text": Past(2, 2, 8)}
    next(first)
    second = Loader(after, words, past=past)
    second.restore(json.loads(json.dumps(first.state())))
    seen = [next(second)["text"]["tokens"].tolist() for _ in range(2)]
    third = Loader(after, words, past=past)
    third.restore(json.loads(json.dumps(second.state())))
    assert third.step == 3
    assert next(second)["text"]["tokens"].tolist() == next(third)["text"]["tokens"].tolist()
    unmoved = Loader(after, words)
    assert next(unmoved)["text"]["tokens"].tolist() != seen[0]  # not the same order again
    for loader in (first, second, third, unmoved):
        loader.close()
