import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llama_jax.text import Detokenizer
from tests.text.small import KINDS, TEXTS, opened


def stream(tokenizer, ids):
    detokenizer = Detokenizer(tokenizer)
    return [detokenizer.push(i) for i in ids] + [detokenizer.end()]


@pytest.mark.parametrize("kind", KINDS)
@given(st.data())
@settings(max_examples=200, deadline=None)
def test_what_is_printed_bit_by_bit_is_what_decode_gives(kind, data):
    tokenizer = opened(kind)
    # Any ids a model may say: broken characters, control tokens, ids without a token.
    ids = data.draw(st.lists(st.integers(0, tokenizer.vocab + 3), max_size=40))
    assert "".join(stream(tokenizer, ids)) == tokenizer.decode(ids)


@pytest.mark.parametrize("kind", KINDS)
def test_a_text_comes_back_from_a_stream(kind):
    tokenizer = opened(kind)
    for text in TEXTS:
        assert "".join(stream(tokenizer, tokenizer.encode(text))) == text


def test_half_a_character_waits_for_its_other_half():
    tokenizer = opened("bpe")
    ids = [i for i in range(tokenizer.vocab) if len(tokenizer.piece(i)) == 1]
    byte = {tokenizer.piece(i): i for i in ids}
    smile = [byte[bytes([b])] for b in "🙂".encode()]
    assert stream(tokenizer, [byte[b"a"], *smile, byte[b"b"]]) == ["a", "", "", "", "🙂", "b", ""]
    assert stream(tokenizer, smile[:2]) == ["", "", "\ufffd"]


def test_only_the_first_space_of_sentencepiece_is_left_out():
    tokenizer = opened("sentencepiece")
    bos = tokenizer.control["<s>"]
    ids = [bos, *tokenizer.encode("the"), bos, *tokenizer.encode("the")]
    assert "".join(stream(tokenizer, ids)) == "the the"
