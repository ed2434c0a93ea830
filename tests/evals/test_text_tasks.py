"""Tasks in text, judged as they say: the oracle, which repeats the colour that it reads."""

import dataclasses
import json

import numpy as np
import pytest

from llama_jax import tasks
from llama_jax.data import JsonLines, Seq2Seq, Stream, Tfds, Union
from llama_jax.data.fields import text_batch
from llama_jax.data.rows import Rows
from llama_jax.errors import UserError
from llama_jax.evals import ExactMatch, Tasks, evaluations
from llama_jax.evals.inputs import encode, texts_of
from llama_jax.evals.parts import Example, parts_of
from llama_jax.evals.tasks import by_instruction, some
from llama_jax.evals.text import answers
from llama_jax.generate.beam import Beam, search
from llama_jax.layers.attention import Attention
from llama_jax.layers.block import Block
from llama_jax.layers.mlp import SwiGLU
from llama_jax.layers.rope import Rope
from llama_jax.layers.stack import Stack
from llama_jax.models.decoder import Decoder
from llama_jax.models.fusion import Late
from llama_jax.models.multimodal import Multimodal
from llama_jax.models.text_encoder import TextEncoder
from llama_jax.objectives import Seq2Seq as Writing
from llama_jax.tasks.base import Task
from llama_jax.train.load import Trained
from tests.evals.conftest import Pretend
from tests.models.small import start

COLORS = Task(
    "colors", "colours", Tfds("colors"), ("say",), "say: red", ("exact", "macro_f1"),
    ("copy", "nearest"), tests=("test", "longer"), by="language",
)  # fmt: skip
# The oracle says the colour of a source; in German a right answer is another one now and then.
TEST = [(c, c, "en") for c in ("red", "green", "blue", "black")] + [
    ("red", "green", "de"), ("green", "green", "de"), ("blue", "green", "de"),
]  # fmt: skip
ROWS = {
    "train": [("red", "green", "de"), ("red", "green", "de"), ("blue", "blue", "en")],
    "test": TEST,
    "longer": TEST[:2],
}


def rows_of(split):
    names = "source", "target", "language"
    rows = [dict(zip(names, row, strict=True)) | {"task": f"say {row[2]}"} for row in ROWS[split]]
    return Rows(f"colors:{split}", len(rows), rows.__getitem__, [])


@pytest.fixture
def state(trained, monkeypatch):
    """A run of one stream, whose source is a data set that the task `colors` knows."""
    monkeypatch.setattr(Tfds, "open", lambda source: rows_of(source.split))
    monkeypatch.setattr(tasks, "NAMES", ("colors",))
    monkeypatch.setattr(tasks, "get", {"colors": COLORS}.__getitem__)
    # A word between its two marks: the oracle looks at the last place, which must not be empty.
    stream = Stream(Tfds("colors"), Seq2Seq(length=3, answer_length=8), 4)
    made = trained({"colors": Writing("colors")})
    return dataclasses.replace(made, run=dataclasses.replace(made.run, data={"colors": stream}))


def with_stream(state, **fields):
    stream = dataclasses.replace(state.run.data["colors"], **fields)
    return dataclasses.replace(state, run=dataclasses.replace(state.run, data={"colors": stream}))


def test_a_stream_of_a_known_data_set_is_judged_as_its_task_says(state):
    assert evaluations(state.run, limit=5) == [Tasks("colors", "colors", limit=5)]
    rows = {row.name: row for row in Tasks("colors", "colors", batch=2).rows(state)}
    assert [*rows] == [
        *("colors_exact", "colors_exact_de", "colors_exact_en"),
        *("colors_macro_f1", "colors_macro_f1_de", "colors_macro_f1_en"),
        *("colors_longer_exact", "colors_longer_macro_f1"),
    ]
    whole, german = rows["colors_exact"], rows["colors_exact_de"]
    assert (whole.value, whole.count, whole.data) == (pytest.approx(5 / 7), 7, "colors:test")
    assert whole.low < whole.value < whole.high
    assert (german.value, german.count) == (pytest.approx(1 / 3), 3)
    # Always "green": 1 and 3 of them. A copy is what the oracle says; the neighbour of "green" is
    # "red", which stands for green in training, and that of "blue" is the English one.
    assert (whole.baseline, german.baseline) == (pytest.approx(4 / 7), 1)
    assert (whole.strong, whole.strong_name) == (pytest.approx(5 / 7), "copy of the source")
    assert (german.strong, german.strong_name) == (
        pytest.approx(2 / 3),
        "nearest neighbour",
    )
    assert rows["colors_longer_exact"].data == "colors:longer"


def test_other_fields_of_a_known_data_set_are_another_task(state):
    other = with_stream(state, task=Seq2Seq(target="language", length=3))
    assert evaluations(other.run) == [ExactMatch("colors", "colors")]


def test_each_part_of_a_union_is_judged_and_unknown_ones_by_exact_match(state, tmp_path):
    mine = [{"source": c, "target": c} for c in ("red", "blue")] + [
        {"source": "green", "target": "red"},
        {"source": "black", "target": " "},  # nothing to write
    ]
    (tmp_path / "mine.jsonl").write_text("\n".join(map(json.dumps, mine)))
    union = Union({"mine": JsonLines(str(tmp_path / "mine.jsonl")), "known": Tfds("colors")})
    mixed = with_stream(state, source=union)
    assert [part.name for part in parts_of(mixed.run.data["colors"])] == [
        *("known", "known_longer", "mine")
    ]
    rows = {row.name: row for row in evaluations(mixed.run)[0].rows(mixed)}
    assert rows["known_exact"].value == pytest.approx(5 / 7)
    assert rows["mine_exact"].value == pytest.approx(2 / 3)
    assert (rows["mine_exact"].count, rows["mine_exact"].strong) == (3, 1)
    assert rows["mine_exact"].data.endswith("(training data)")


def test_the_batch_size_changes_nothing(state):
    few, many = (Tasks("colors", "colors", batch=n).rows(state) for n in (2, 64))
    assert few == many


def test_a_limit_takes_rows_from_everywhere_and_always_the_same():
    rows = [Example(str(i), "x", "") for i in range(100)]
    chosen = [int(one.source) for one in some(rows, 20)]
    assert chosen == [int(one.source) for one in some(rows, 20)] == sorted(chosen)
    assert len(chosen) == 20 and min(chosen) < 20 and max(chosen) > 80
    assert some(rows, 100) == some(rows, None) == rows


def test_baselines_learn_from_rows_with_the_same_instruction():
    known = [Example("page", "Seite", "to German"), Example("page", "página", "to Spanish")]
    asked = [Example("pages", "", told) for told in ("to Spanish", "to German", "to French")]
    found = by_instruction("nearest", known, asked)
    assert found[:2] == ["página", "Seite"]
    assert found[2] in ("Seite", "página")  # in French nothing was learned


def test_a_test_without_rows_is_named(state, monkeypatch):
    monkeypatch.setitem(ROWS, "longer", [("red", " ", "de")])
    with pytest.raises(UserError, match="colors:longer has no row"):
        Tasks("colors", "colors").rows(state)


def test_beams_write_what_the_search_finds(tokenizer):
    block = Block(Attention(2, 2, 4, rope=Rope()), SwiGLU(8))
    writer = Block(Attention(2, 2, 4, causal=True), SwiGLU(8), cross=Attention(2, 2, 4, rope=None))
    config = Multimodal(
        TextEncoder(tokenizer.vocab, 8, Stack((block,))),
        Late(),
        decoder=Decoder(tokenizer.vocab, 8, Stack((writer,))),
    )
    model, text, valid = config.build(), np.full((2, 3), 7), np.ones((2, 3), bool)
    text[1] = 9
    method = lambda m, s, t: m.decode(t, m.join(m.fuse({"text": m.encode_text(s)})))[0]  # noqa: E731
    variables, _ = start(method, model, text, text)
    trained = Trained(Pretend({}, {}), model, variables["params"], tokenizer, 0)
    batch = text_batch([*text.tolist()], 3) | {"row_valid": valid[:, 0]}
    inputs, beam = encode(trained, [batch], 2), Beam(3)
    found = answers(trained, inputs, inputs.index, 4, 2, beam)

    def read(m):
        return m.join(m.fuse({"text": m.encode_text(text, valid)}))

    memory = model.apply(variables, method=read)
    ends = {"bos": tokenizer.bos, "eos": tokenizer.eos, "max_new": 4}
    assert found == texts_of(
        np.asarray(search(model, variables, memory, beam, **ends).ids[:, 0]), tokenizer
    )


@pytest.mark.parametrize(("field", "text"), [("beams", "width=0"), ("batch", "batch=0")])
def test_settings_out_of_range_are_refused(field, text):
    with pytest.raises(UserError, match=text):
        Tasks("colors", "colors", **{field: 0})
