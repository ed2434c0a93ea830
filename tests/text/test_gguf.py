import json

import numpy as np
import pytest

from llama_jax.errors import FormatError
from llama_jax.text import open_tokenizer
from llama_jax.text.gguf import from_fields, to_fields
from llama_jax.text.spelling import alphabet
from tests.text.small import KINDS, TEXTS, bpe_json, opened, smollm2_fields


def sentencepiece_fields(**changes):
    fields = to_fields(opened("sentencepiece"))
    return fields | {f"tokenizer.ggml.{key}": value for key, value in changes.items()}


def bpe_fields(**changes):
    fields = to_fields(opened("bpe"))
    return fields | {f"tokenizer.ggml.{key}": value for key, value in changes.items()}


@pytest.mark.parametrize("kind", KINDS)
def test_a_tokenizer_goes_through_gguf_and_back_unchanged(kind):
    before = opened(kind)
    after = from_fields(to_fields(before))
    for text in TEXTS:
        assert after.encode(text) == before.encode(text)
        assert after.parse(text) == before.parse(text)
    assert (after.vocab, after.bos, after.ends) == (before.vocab, before.bos, before.ends)
    assert after.control == before.control and after.template == before.template


def test_key_values_of_smollm2_are_those_of_its_file():
    given = smollm2_fields()
    made = to_fields(opened("smollm2"))
    assert {k: given[k] for k in made if k in given} == {k: made[k] for k in made if k in given}
    assert {k for k in given if k.startswith("tokenizer.")} - made.keys() == {
        "tokenizer.ggml.add_space_prefix"  # of no meaning for bytes
    }


def test_digits_of_smollm2_are_tokens_of_their_own_and_take_no_space_along():
    tokenizer = opened("smollm2")
    pieces = [tokenizer.piece(i) for i in tokenizer.encode("in  2024 a")]
    assert pieces == [b"in", b"  ", b"2", b"0", b"2", b"4", b" a"]


def test_arrays_serve_as_well_as_lists():
    fields = sentencepiece_fields()
    arrays = fields | {
        "tokenizer.ggml.scores": np.array(fields["tokenizer.ggml.scores"], np.float32),
        "tokenizer.ggml.token_type": np.array(fields["tokenizer.ggml.token_type"], np.int32),
        "tokenizer.ggml.bos_token_id": np.uint32(fields["tokenizer.ggml.bos_token_id"]),
        "tokenizer.ggml.tokens": np.array(fields["tokenizer.ggml.tokens"]),
    }
    for text in TEXTS:
        assert from_fields(arrays).encode(text) == opened("sentencepiece").encode(text)


@pytest.mark.parametrize("space", [True, False])
def test_sentencepiece_puts_a_space_in_front_if_the_file_says_so(space):
    tokenizer = from_fields(sentencepiece_fields(add_space_prefix=space))
    (first, *_) = tokenizer.encode("the fox")
    assert tokenizer.piece(first).startswith(b" ") == space
    assert tokenizer.decode(tokenizer.encode(" the fox")) == " the fox"


def test_a_bos_is_there_where_the_file_or_else_its_kind_says_so():
    bos = opened("bpe").control["<|begin_of_text|>"]
    assert from_fields(bpe_fields()).bos == bos
    assert from_fields(bpe_fields(add_bos_token=False)).bos is None
    unsaid = bpe_fields()
    del unsaid["tokenizer.ggml.add_bos_token"]
    assert from_fields(unsaid).bos == bos  # as llama.cpp does for llama-bpe
    unsaid = {**smollm2_fields()}
    del unsaid["tokenizer.ggml.add_bos_token"]
    assert from_fields(unsaid).bos is None


def test_all_tokens_that_end_generation_are_kept_or_refused(tmp_path):
    (tmp_path / "tokenizer.json").write_bytes(bpe_json())
    control = opened("bpe").control
    think, start = control["<|end_header_id|>"], control["<|start_header_id|>"]
    usual = opened("bpe").ends

    def ending_with(*ids):
        ends = {"eos_token_id": list(ids)}
        (tmp_path / "generation_config.json").write_text(json.dumps(ends))
        return open_tokenizer(tmp_path)

    fields = to_fields(ending_with(think))
    assert fields["tokenizer.ggml.eos_token_id"] == think
    assert from_fields(fields).ends == usual | {think}
    with pytest.raises(FormatError, match="no room for 1 of them"):
        to_fields(ending_with(think, start))


def test_a_padding_token_may_be_any_token():
    letter = bpe_fields()["tokenizer.ggml.tokens"].index("!")
    tokenizer = from_fields(bpe_fields(padding_token_id=letter))
    assert "!" not in tokenizer.control and tokenizer.encode("!") == [letter]


def test_an_unknown_pre_tokenizer_is_refused_by_name():
    with pytest.raises(FormatError, match="'lama-bpe' is not supported.*Did you mean 'llama-bpe'"):
        from_fields(bpe_fields(pre="lama-bpe"))
    with pytest.raises(FormatError, match=r"tokenizer\.ggml\.pre is '3'; expected a text"):
        from_fields(bpe_fields(pre=3))


# The words that each name cuts a text into, read off the patterns that llama.cpp has for it.
WORDS = {
    "llama-bpe": ["it", "'s", " ", " 年", "123", "45", "!\n"],
    "falcon3": ["it", "'s", " ", " 年", "123", "45", "!\n"],
    "smaug-bpe": ["it", "'s", " ", " 年", "123", "45", "!\n"],
    "qwen2": ["it", "'s", " ", " 年", "1", "2", "3", "4", "5", "!\n"],
    "deepseek-r1-qwen": ["it", "'s", " ", " 年", "1", "2", "3", "4", "5", "!\n"],
    "tekken": ["it", "'s", " ", " 年", "1", "2", "3", "4", "5", "!\n"],
    "smollm": ["it", "'s", " ", " 年", "1", "2", "3", "4", "5", "!", "\n"],
    "gpt-2": ["it", "'s", " ", " 年", "12345", "!", "\n"],
    "default": ["it", "'", "s", " ", " 年", "123", "45", "!", "\n"],
    "deepseek-llm": ["it", "'", "s", "  ", "年", "12345", "!", "\n"],
    "deepseek-coder": ["it", "'", "s", " ", " ", "年", "1", "2", "3", "4", "5", "!", "\n"],
}


@pytest.mark.parametrize("name", WORDS)
def test_every_pre_tokenizer_cuts_words_as_its_name_says(name):
    """All two-letter merges of a text of one byte a token show where words begin."""
    vocab = {letter: i for i, letter in enumerate(alphabet())}
    text = "it's  年12345!\n"
    letters = {byte: letter for letter, byte in alphabet().items()}
    spelled = "".join(letters[byte] for byte in text.encode())
    merges = []
    for end in range(2, len(spelled) + 1):  # whatever is left of a word grows by one letter
        for start in range(end - 1):
            left, right = spelled[start : end - 1], spelled[end - 1]
            if left + right not in vocab:
                vocab[left + right] = len(vocab)
                merges.append(f"{left} {right}")
    fields = {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": name,
        "tokenizer.ggml.tokens": [*vocab],
        "tokenizer.ggml.merges": merges,
    }
    tokenizer = from_fields(fields)
    assert [tokenizer.piece(i).decode() for i in tokenizer.encode(text)] == WORDS[name]
    if name == "default":  # as llama.cpp takes it where a file names none
        del fields["tokenizer.ggml.pre"]
        assert from_fields(fields).encode(text) == tokenizer.encode(text)


@pytest.mark.parametrize("kind", ["bpe", "sentencepiece"])
def test_user_defined_tokens_are_text_and_control_tokens_are_not(kind):
    fields = bpe_fields() if kind == "bpe" else sentencepiece_fields()
    types = [*fields["tokenizer.ggml.token_type"]]
    name = "<|end_header_id|>" if kind == "bpe" else "<control>"
    token = opened(kind).control[name]
    assert types[token] == 3
    types[token] = 4
    tokenizer = from_fields(fields | {"tokenizer.ggml.token_type": types})
    assert tokenizer.texts[name] == token and name not in tokenizer.control
    ids = tokenizer.encode(f"a{name}b")
    # As in llama.cpp, SentencePiece's space stands before every part of a text.
    space = "" if kind == "bpe" else " "
    assert token in ids and tokenizer.decode(ids) == f"a{name}{space}b"
    again = to_fields(tokenizer)
    assert again["tokenizer.ggml.token_type"][token] == 4
    assert from_fields(again).encode(f"a{name}b") == ids


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"model": "bert"}, "'bert' is not supported; expected 'gpt2' or 'llama'"),
        ({"tokens": "abc"}, "expected a list"),
        ({"tokens": [1, 2]}, "is not a text"),
        ({"tokens": ["a"]}, "1 tokens and"),
        ({"token_type": ["x"]}, "holds what is no number"),
        ({"merges": ["abc"]}, "'abc' is not two tokens"),
        ({"merges": ["abc def"]}, "abc"),
        ({"eos_token_id": 2**32 - 1}, "eos_token_id is 4294967295; expected an id below"),
        ({"eos_token_id": "x"}, "holds what is no number"),
    ],
)
def test_damaged_key_values_of_bytes_are_refused(change, why):
    with pytest.raises(FormatError, match=why):
        from_fields(bpe_fields(**change))


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"scores": [0.0]}, "1 scores"),
        ({"scores": ["1.0"] * 420}, "holds what is no number"),
        ({"scores": [float("nan")] * 420}, "not finite"),
        ({"token_type": None}, "has no tokenizer.ggml.token_type"),
        ({"token_type": [1] * 420}, "one unknown token"),
        ({"token_type": [9] * 420}, "types 1 to 6"),
        ({"tokens": ["a"] * 420}, "a token twice"),
        ({"tokens": ["\ud800"] * 420}, "not valid Unicode"),
    ],
)
def test_damaged_key_values_of_sentencepiece_are_refused(change, why):
    with pytest.raises(FormatError, match=why):
        from_fields(sentencepiece_fields(**change))


def test_a_token_twice_is_refused():
    tokens = [*bpe_fields()["tokenizer.ggml.tokens"]]
    tokens[300] = tokens[301]
    with pytest.raises(FormatError, match="a token twice|two tokens"):
        from_fields(bpe_fields(tokens=tokens))
