import json

import numpy as np
import pytest

from llama_jax.data import Completions, JsonLines, Loader, Prepared, Stream, one_pass
from llama_jax.data.kinds import kind_of
from llama_jax.data.rows import Rows
from llama_jax.data.sources import ImageFolder
from llama_jax.errors import UserError
from llama_jax.text.tokenizer import Tokenizer

WORDS = Tokenizer.train(["what is one plus two? it is three, and four is two and two"] * 9, 300)


class Data:
    """A source of rows that are given."""

    def __init__(self, *rows):
        self.rows = rows

    def open(self):
        return Rows("'rows'", len(self.rows), self.rows.__getitem__)


def batch(length, *rows, **changes):
    task = Completions(length=length, **changes)
    stream = Stream(Data(*rows), task, batch=len(rows))
    return next(one_pass(stream, WORDS))


def test_a_row_is_the_pair_and_only_the_target_is_learned():
    found = batch(40, {"source": "what is one?", "target": "it is three"})
    ids = WORDS.encode("what is one?\nit is three")
    np.testing.assert_array_equal(found["tokens"][0, : len(ids) + 1], [WORDS.bos, *ids])
    np.testing.assert_array_equal(found["targets"][0, : len(ids) + 1], [*ids, WORDS.eos])
    learned = found["targets"][0][found["loss_weights"][0] > 0].tolist()
    assert learned == [*ids[len(WORDS.encode("what is one?\n")) :], WORDS.eos]
    assert WORDS.decode(learned).strip() == "it is three"


def test_a_token_across_the_border_counts_to_the_target():
    together, apart = WORDS.encode("what is"), [*WORDS.encode("what "), *WORDS.encode("is")]
    assert together != apart
    found = batch(20, {"source": "what ", "target": "is"}, between="")
    learned = found["targets"][0][found["loss_weights"][0] > 0].tolist()
    assert WORDS.decode(learned).endswith("is") and learned[-1] == WORDS.eos
    assert found["tokens"][0, 1 : len(together) + 1].tolist() == together


def test_of_a_pair_that_is_too_long_the_source_loses_its_beginning():
    source, target = "what is one plus two? " * 9, "it is three"
    found = batch(20, {"source": source, "target": target})
    assert found["tokens"][0, 0] == WORDS.bos
    learned = found["targets"][0][found["loss_weights"][0] > 0].tolist()
    assert WORDS.decode(learned).strip() == target and learned[-1] == WORDS.eos
    ids = WORDS.encode(f"{source}\n{target}")
    assert found["tokens"][0, 1:].tolist() == ids[-19:]


def test_a_target_that_is_longer_than_a_row_loses_its_end():
    found = batch(8, {"source": "one", "target": "it is three, and four " * 9})
    assert found["loss_weights"][0].all() and WORDS.eos not in found["targets"][0]


def test_pairs_without_a_text_are_left_out(tmp_path):
    file = tmp_path / "pairs.jsonl"
    rows = [{"source": "one", "target": t} for t in ("three", None, 4)]
    file.write_text("\n".join(map(json.dumps, rows)))
    loader = Loader({"a": Stream(JsonLines(str(file)), Completions(length=8), 2)}, WORDS)
    assert sorted(loader.batch(0)["a"]["id"]) == [0, 2]
    assert "1 of 3 rows hold no text" in loader.report(1)[0]


@pytest.mark.parametrize(
    ("row", "fields", "said", "named"),
    [
        ({"text": "one"}, (), "texts (field 'text')", None),
        ({"id": 7, "body": "one"}, ("body",), "texts (field 'body')", "body"),
        (
            {"question": "one?", "answer": "two"},
            (),
            "to be written 'answer'",
            ("question", "answer"),
        ),
        ({"q": "one?", "a": "two"}, ("q", "a"), "given 'q'", ("q", "a")),
    ],
)
def test_what_data_are_is_found_by_their_fields(row, fields, said, named):
    kind = kind_of(Data(row), WORDS, 512, fields)
    assert said in kind.said
    task = kind.task
    found = (task.source, task.target) if isinstance(task, Completions) else task.field
    assert found == named


def test_rows_are_as_long_as_the_data_need_and_the_model_reads():
    rows = [{"text": "one plus two " * n} for n in (1, 30)]
    longest = len(WORDS.encode(rows[1]["text"])) + 2
    length = kind_of(Data(*rows), WORDS, 512).task.length
    assert longest <= length < 2 * longest
    assert kind_of(Data(*rows), WORDS, 48).task.length == 48
    pairs = [{"source": row["text"], "target": "two"} for row in rows]
    assert longest <= kind_of(Data(*pairs), WORDS, 512).task.length <= longest + 64


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"messages": [{"role": "user", "content": "hi"}]}, "holds chats .* comes later"),
        ({"instruction": "add", "input": "1 2", "output": "3"}, "join the two in one field"),
        ({"body": "one", "id": 3}, "has the fields body, id; name the one .*--fields NAME"),
    ],
)
def test_data_of_another_kind_say_what_helps(row, said):
    with pytest.raises(UserError, match=said):
        kind_of(Data(row), WORDS, 512)


def test_pictures_are_no_texts(tmp_path):
    with pytest.raises(UserError, match="holds pictures"):
        kind_of(ImageFolder(str(tmp_path)), WORDS, 512)
    with pytest.raises(UserError, match="holds no manifest.json"):
        kind_of(Prepared(str(tmp_path)), WORDS, 512)
