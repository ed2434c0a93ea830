import json

import numpy as np
import pytest

from llama_jax.errors import FormatError
from llama_jax.text import open_tokenizer
from llama_jax.text.gguf import from_fields, to_fields
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
    with pytest.raises(FormatError, match=r"tokenizer\.ggml\.pre is 'None'; expected a text"):
        from_fields(bpe_fields(pre=None))


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
