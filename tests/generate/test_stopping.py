"""Text as it is shown: stop strings never appear, halves of characters neither."""

import pytest
from hypothesis import assume, given, strategies

from llama_jax.errors import UserError
from llama_jax.generate.stopping import Stop, Writer
from tests.generate import small


def write(text, stops, end=False):
    writer = Writer(small.tokenizer(), Stop(stops))
    ids = small.tokenizer().encode(text)
    pieces = [writer.push(i, -0.5, False) for i in ids]
    if end:
        pieces.append(writer.push(small.CONTROL["</s>"], -0.5, True))
    return writer, [*pieces, writer.end()]


letters = strategies.text(alphabet="abé🙂 \n", max_size=30)


@given(
    letters, strategies.lists(strategies.text(alphabet="abé", min_size=1, max_size=4), max_size=3)
)
def test_the_pieces_are_the_text_up_to_the_first_stop_string(text, stops):
    # Of two strings of which one holds the other, the inner one is complete first.
    assume(not any(a != b and a in b for a in stops for b in stops))
    writer, pieces = write(text, tuple(stops))
    places = [place for s in stops if (place := text.find(s)) >= 0]
    expected = text[: min(places)] if places else text
    assert "".join(pieces) == writer.text == expected
    assert writer.finished == bool(places)


def test_what_may_become_a_stop_string_is_held_back():
    writer, pieces = write("one END. two", ("END!",))
    assert writer.text == "one END. two"
    so_far = ""
    for piece in pieces:
        so_far += piece
        assert not so_far.endswith("END") or "END." in so_far


def test_an_end_token_has_no_text_and_nothing_follows_it():
    writer, pieces = write("blue", (), end=True)
    assert writer.finished and "".join(pieces) == "blue"
    assert writer.push(5, 0.0, False) == "" and len(writer.ids) == len(writer.logprobs)


def test_half_a_character_waits_for_its_other_half():
    writer = Writer(small.tokenizer())
    ids = small.tokenizer().encode("🙂")
    assert len(ids) == 4
    assert [writer.push(i, 0.0, False) for i in ids] == ["", "", "", "🙂"]


def test_an_empty_stop_string_is_refused():
    with pytest.raises(UserError, match="one character or more"):
        Stop(("",))
