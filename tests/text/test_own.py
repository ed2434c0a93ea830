"""The tokenizer of a run generates text like any other."""

import pytest

from llama_jax.errors import UserError
from llama_jax.text.detokenize import Detokenizer
from llama_jax.text.own import open_own
from llama_jax.text.tokenizer import NAMED, Tokenizer

TEXTS = ("In the beginning", "naïve 你好 🙂", " two  spaces ", "<eos> and <mask>")


@pytest.fixture
def opened(tmp_path):
    Tokenizer.train(["in the beginning was the word"] * 9, vocab=300).save(
        tmp_path / "tokenizer.json"
    )
    return open_own(tmp_path)


@pytest.mark.parametrize("text", TEXTS)
def test_text_comes_back_whole_and_piece_by_piece(opened, text):
    ids = opened.encode(text)
    assert opened.decode(ids) == text
    assert not set(ids) & set(opened.control.values())
    stream = Detokenizer(opened)
    assert "".join([*map(stream.push, ids), stream.end()]) == text


def test_named_tokens_are_control_tokens(opened):
    assert list(opened.control) == list(NAMED)
    assert opened.bos == opened.control["<bos>"] and opened.ends == {opened.control["<eos>"]}
    assert opened.parse("<bos>word<eos>")[0] == opened.bos


def test_a_run_without_a_tokenizer_says_so(tmp_path):
    with pytest.raises(UserError, match="holds no tokenizer"):
        open_own(tmp_path)
