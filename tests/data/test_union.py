"""Several sources in one stream: whose rows come how often, and what is refused."""

import json
from collections import Counter

import numpy as np
import pytest

from llama_jax.config import BPE, edit, from_json, to_json
from llama_jax.config.text import edit_text
from llama_jax.data import (
    JsonLines,
    Loader,
    PlainText,
    Prepared,
    Seq2Seq,
    Share,
    Stream,
    Tfds,
    Union,
    texts,
)
from llama_jax.data.splits import of_split
from llama_jax.errors import UserError


@pytest.fixture(scope="module")
def three(tmp_path_factory):
    """Sources of 2, 3 and 10 rows, each with texts of its own."""
    place = tmp_path_factory.mktemp("union")
    found = {}
    for name, rows in {"few": 2, "some": 3, "many": 10}.items():
        lines = [{"source": f"{name} {n}", "target": f"{n}", "task": "copy"} for n in range(rows)]
        file = place / f"{name}.jsonl"
        file.write_text("\n".join(map(json.dumps, lines)))
        found[name] = JsonLines(str(file))
    return found


def said(rows):
    return [row["source"] for row in rows]


def test_without_weights_every_row_comes_once_in_one_fixed_order(three):
    rows = Union(three).open()
    assert len(rows) == 15 and len(set(said(rows))) == 15
    assert said(rows) == said(Union(dict(reversed(three.items()))).open())
    assert rows[4] == rows[4 - len(rows)]
    with pytest.raises(IndexError):
        rows[15]


def test_a_row_says_which_source_it_is_from(three):
    assert all(row["source"].startswith(row["part"]) for row in Union(three).open())


def test_sources_take_turns_through_the_whole_epoch(three):
    first = [row["part"] for row in list(Union(three).open())[:8]]
    assert Counter(first)["many"] in (5, 6) and len(set(first)) == 3


@pytest.mark.parametrize("weights", [{"few": 3.0}, {"few": 1, "some": 1, "many": 0.5}, {"some": 7}])
def test_an_epoch_holds_all_rows_and_as_many_of_each_source_as_it_weighs(three, weights):
    rows = list(Union(three, weights).open())
    assert set(said(rows)) == set(said(Union(three).open()))
    counts = Counter(row["part"] for row in rows)
    full = {name: weights.get(name, 1.0) for name in three}
    for name in three:
        assert counts[name] / len(rows) == pytest.approx(full[name] / sum(full.values()), abs=0.03)
    for name, count in counts.items():
        times = Counter(text for text in said(rows) if text.startswith(name)).values()
        assert max(times) - min(times) <= 1 and sum(times) == count


def test_parts_are_the_sources_as_they_were_given(three):
    assert Union(three, {"few": 2}).parts() == three


def test_a_tokenizer_reads_each_row_once_and_no_names_of_parts(three):
    heavy = Union(three, {"few": 50})
    assert Counter(texts(heavy)) == Counter(t for source in three.values() for t in texts(source))
    assert (
        BPE(vocab=300).build([heavy]).decode(BPE(vocab=300).build([heavy]).encode("few")) == "few"
    )


def test_equal_ones_are_one_source(three):
    one, same = Union(three, {"few": 2}), Union(dict(reversed(three.items())), {"few": 2})
    assert one == same and len({one, same, Union(three)}) == 2


def test_run_json_keeps_it(three):
    stream = Stream(Union(three, {"few": 2}), Seq2Seq(instruction="task"), 4)
    assert from_json(to_json(stream)) == stream


def test_one_weight_is_set_from_the_command_line_and_the_others_are_1(three):
    stream = Stream(Union(three), Seq2Seq(), 4)
    heavier = edit_text(stream, "source.weights.few", "2")
    assert heavier.source.weights == {"few": 2.0, "some": 1.0, "many": 1.0}
    assert edit(heavier, "source.weights.some", 3).source.weights["some"] == 3.0
    moved = edit_text(stream, "source.sources.few", three["many"].path)
    assert moved.source.sources["few"] == three["many"]
    with pytest.raises(UserError, match="no 'fewer' in 'source.weights.fewer'.*Did you mean"):
        edit_text(stream, "source.weights.fewer", "2")
    with pytest.raises(UserError, match="few=-1.0; expected a number above 0"):
        edit_text(stream, "source.weights.few", "-1")


def test_a_stream_of_it_reads_every_part_with_the_instruction_in_front(three, tokenizer):
    task = Seq2Seq(length=16, answer_length=4, instruction="task")
    loader = Loader({"text": Stream(Union(three, {"few": 5}), task, 8)}, tokenizer)
    batches = [next(loader)["text"] for _ in range(10)]
    loader.close()
    read = [tokenizer.decode(row) for batch in batches for row in batch["text"].tolist()]
    assert {text.split()[0] for text in read} == {"copy:"}
    assert {text.split()[1] for text in read} == set(three)


def test_what_is_held_out_of_it_is_never_trained_on(three):
    stream = Stream(Union(three, {"few": 3}), Seq2Seq(), 2, held_out=Share(0.4))
    assert stream.measured is not None
    held, kept = (set(said(s.open())) for s in (stream.measured.source, stream.training))
    assert held and kept and not held & kept


@pytest.mark.parametrize(
    ("sources", "weights", "message"),
    [
        ([], {}, "a Union of no sources"),
        (["few"], {"feww": 1.0}, "weights name 'feww'.*Did you mean 'few'"),
        (["few"], {"few": 0.0}, "few=0.0; expected a number above 0"),
        (["few"], {"few": float("inf")}, "few=inf"),
        (["few"], {"few": "2"}, "few='2'; expected a number"),
    ],
)
def test_a_wrong_union_is_refused_in_one_line(three, sources, weights, message):
    with pytest.raises(UserError, match=message) as error:
        Union({name: three[name] for name in sources}, weights)
    assert "\n" not in str(error.value)


def test_what_is_no_source_is_refused(three):
    with pytest.raises(UserError, match="source 'few' of a Union: 'x.txt' is of type str"):
        Union({"few": "x.txt"})  # pyright: ignore[reportArgumentType]


def test_tokens_and_epochs_without_an_end_are_refused(three):
    with pytest.raises(UserError, match="holds tokens.*a Mix"):
        Union({"a": Prepared("prepared/a")})
    with pytest.raises(UserError, match="rows, for all to come once.*weights nearer"):
        Union(three, {"few": 1e-9}).open()


def test_a_wrong_field_is_named_with_the_sources(three, tokenizer):
    task = Seq2Seq(target="answer")
    with pytest.raises(UserError, match="has no field 'answer'; it has source, target, task, part"):
        task.prepare(Union(three).open(), tokenizer, np.arange(2))


def test_a_union_is_measured_on_another_split_of_each_of_its_sources():
    both = Union({"a": Tfds("kjv"), "b": Tfds("bbc_news")}, {"a": 3.0})
    assert of_split(both, "test") == Union(
        {"a": Tfds("kjv", split="test"), "b": Tfds("bbc_news", split="test")}
    )
    assert of_split(Union({"a": Tfds("kjv"), "b": PlainText("a.txt")}), "test") is None
