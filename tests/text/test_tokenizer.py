import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llama_jax.errors import UserError
from llama_jax.text import Detokenizer, Tokenizer, open_tokenizer
from llama_jax.text.digest import digest
from llama_jax.text.export import files
from llama_jax.text.tokenizer import NAMED
from tests.text.small import bpe_json

CORPUS = ["what is the color of the rectangle?", "<mask> <pad> <bos> it's in the image"] * 20
TOKENIZER = Tokenizer.train(CORPUS, vocab=320)


def test_special_tokens_have_the_first_sixteen_ids():
    t = TOKENIZER
    assert (t.pad, t.bos, t.eos, t.cls, t.sep, t.mask) == (0, 1, 2, 3, 4, 5)
    assert list(t.sentinels) == list(range(6, 16)) and t.reserved == 16


@given(st.text(alphabet=st.characters(exclude_categories=["Cs"]), max_size=60))
@settings(max_examples=200, deadline=None)
def test_no_text_becomes_a_special_token_and_every_text_survives(text):
    ids = TOKENIZER.encode(text)
    assert all(16 <= i < TOKENIZER.vocab for i in ids)
    assert TOKENIZER.decode(ids) == text.removeprefix(" ")


@pytest.mark.parametrize("name", ["<pad>", "<mask>", "<extra_0>", "a<mask>b", " <cls> <sep>"])
def test_the_name_of_a_special_token_is_ordinary_text(name):
    ids = TOKENIZER.encode(name)
    assert min(ids) >= 16
    assert TOKENIZER.decode(ids) == name.removeprefix(" ")


def test_lone_surrogates_become_question_marks():
    assert TOKENIZER.decode(TOKENIZER.encode("a\ud800b")) == "a?b"


def test_decode_skips_special_tokens():
    ids = TOKENIZER.encode("the image")
    assert TOKENIZER.decode([3, *ids, 4, 0, 0]) == "the image"


def test_pieces_of_a_word_share_its_index_and_punctuation_is_a_word():
    ids, words = TOKENIZER.encode_with_words("the zebra?")
    assert words[0] == 0 and words[-1] == 2
    assert words[1:-1] == [1] * (len(ids) - 2) and len(ids) > 4


def test_saving_and_loading_changes_nothing(tmp_path):
    TOKENIZER.save(tmp_path / "tokenizer.json")
    loaded = Tokenizer.load(tmp_path / "tokenizer.json")
    text = "what is <mask> naïve rectangle?"
    assert loaded.encode(text) == TOKENIZER.encode(text)
    assert (loaded.vocab, loaded.used, loaded.reserved) == (320, TOKENIZER.used, 16)
    assert loaded.content() == TOKENIZER.content() and digest(loaded) == digest(TOKENIZER)
    assert [p.name for p in tmp_path.iterdir()] == ["tokenizer.json"]


def test_vocab_is_what_was_asked_for_even_if_the_corpus_fills_less():
    small = Tokenizer.train(["a b"], vocab=2048)
    assert small.vocab == 2048 and small.used < 300
    again = Tokenizer.read(small.content())
    assert again is not None and (again.vocab, again.used) == (2048, small.used)


def test_a_vocabulary_without_room_for_bytes_is_refused():
    with pytest.raises(UserError, match="need 272; try vocab=2048"):
        Tokenizer.train(CORPUS, vocab=100)


def test_a_missing_or_foreign_file_is_refused_kindly(tmp_path):
    with pytest.raises(UserError, match="cannot be read"):
        Tokenizer.load(tmp_path / "no.json")
    other = tmp_path / "other.json"
    for content in ("not json", "[]", '{"format": "other"}', bpe_json().decode()):
        other.write_text(content)
        with pytest.raises(UserError, match="is not a tokenizer that llama_jax trained"):
            Tokenizer.load(other)


def test_a_doctored_file_whose_merges_spell_a_special_token_is_refused(tmp_path):
    TOKENIZER.save(tmp_path / "t.json")
    content = json.loads((tmp_path / "t.json").read_text())
    content["model"]["merges"].append(["<ma", "sk>"])
    (tmp_path / "t.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match="<mask>"):
        Tokenizer.load(tmp_path / "t.json")


def test_the_file_is_hugging_faces_with_the_same_ids(tmp_path):
    import tokenizers

    few = Tokenizer.train(["the sea"], vocab=300, sentinels=2)
    few.save(tmp_path / "tokenizer.json")
    theirs = tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    text = "Lamb 7 saw the sea; naïve 🙂"
    assert theirs.encode(text).ids == few.encode(text)
    assert theirs.get_vocab_size() == 300 and theirs.token_to_id("<unused_299>") == 299
    assert {name: theirs.token_to_id(name) for name in few.control} == few.control
    assert theirs.encode("<mask>").ids == [few.mask]  # theirs finds special tokens in texts


@pytest.fixture
def opened(tmp_path):
    TOKENIZER.save(tmp_path / "tokenizer.json")
    return open_tokenizer(tmp_path)


@pytest.mark.parametrize(
    "text", ["In the beginning", "naïve 你好 🙂", " two  spaces ", "<eos> and <mask>", "x" * 60_000]
)
def test_generated_text_comes_back_whole_and_piece_by_piece(opened, text):
    ids = opened.encode(text)
    assert opened.decode(ids) == text
    assert not set(ids) & set(opened.control.values())
    stream = Detokenizer(opened)
    assert "".join([*map(stream.push, ids), stream.end()]) == text


def test_special_tokens_are_control_tokens_for_generating(opened):
    assert list(opened.control)[: len(NAMED)] == list(NAMED) and opened.vocab == TOKENIZER.vocab
    assert opened.bos == opened.control["<bos>"] and opened.eos == opened.control["<eos>"]
    assert opened.ends == {opened.eos}
    assert opened.parse("<bos>word<eos>")[0] == opened.bos


def test_export_keeps_the_space_before_a_text(opened):
    import tokenizers

    theirs = tokenizers.Tokenizer.from_buffer(files(opened)["tokenizer.json"])
    text = "what is the color?"
    ids = theirs.encode(text, add_special_tokens=False).ids
    assert ids == opened.encode(text) == TOKENIZER.encode(text)
