"""Which files belong to a tokenizer, and that they open the same wherever they are copied."""

import json

import pytest

from llama_jax.errors import FormatError
from llama_jax.text import open_tokenizer
from llama_jax.text.files import files_of, open_for_training
from llama_jax.text.tokenizer import Tokenizer, trained_here
from llama_jax.text.vocabulary import Vocabulary
from tests.text.small import bpe_json, sentencepiece_model

CONFIG = {"eos_token": "<|eot_id|>", "add_bos_token": False}


@pytest.fixture
def folder(tmp_path):
    """Both kinds of files in one folder, with a JSON file beside them."""
    place = tmp_path / "there"
    place.mkdir()
    (place / "tokenizer.json").write_bytes(bpe_json())
    (place / "tokenizer.model").write_bytes(sentencepiece_model())
    (place / "tokenizer_config.json").write_text(json.dumps(CONFIG))
    (place / "config.json").write_text("{}")
    return place


def copied(path, place):
    place.mkdir()
    for name, content in files_of(path).items():
        (place / name).write_bytes(content)
    return place


def test_a_folder_gives_what_belongs_to_a_tokenizer_and_no_more(folder):
    assert set(files_of(folder)) == {"tokenizer.json", "tokenizer.model", "tokenizer_config.json"}


def test_a_file_comes_with_the_json_files_beside_it(folder, tmp_path):
    path = folder / "tokenizer.json"
    again = open_for_training(copied(path, tmp_path / "copy"))
    assert again.eos == again.control["<|eot_id|>"] == open_for_training(path).eos
    assert open_tokenizer(path).eos != again.eos  # the file alone


def test_a_sentencepiece_model_keeps_its_name_and_its_ids(folder, tmp_path):
    (folder / "tokenizer_config.json").unlink()
    copy = copied(folder / "tokenizer.model", tmp_path / "copy")
    assert [file.name for file in copy.iterdir()] == ["tokenizer.model"]
    words, text = open_for_training(copy), "naïve 你好 the quick fox"
    assert words.encode(text) == open_tokenizer(folder / "tokenizer.model").encode(text)
    assert words.decode(words.encode(text)) == text
    assert words.eos == words.control["</s>"]


def test_a_file_of_another_name_stands_alone(folder):
    path = (folder / "tokenizer.json").rename(folder / "mine.json")
    assert list(files_of(path)) == ["tokenizer.json"]
    assert open_for_training(path).bos is not None


def test_a_trained_tokenizer_is_told_from_others_by_its_content(folder):
    words = Tokenizer.train(["a b c"], vocab=300)
    words.save(folder / "tokenizer.json")
    assert isinstance(open_for_training(folder), Tokenizer) and isinstance(words, Vocabulary)
    assert not isinstance(open_tokenizer(folder), Tokenizer)
    assert trained_here(words, "a task") is words
    # What is missing or of another kind makes it a tokenizer like any other.
    for change in (
        {"added_tokens": []},
        {"added_tokens": [{"id": i, "content": f"<{i}>"} for i in range(6)]},
        {"pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": False}},
        {"model": {}},
    ):
        assert Tokenizer.read(json.dumps(json.loads(words.content()) | change).encode()) is None
    with pytest.raises(FormatError, match="the tokenizer: "):
        Tokenizer.read(json.dumps(json.loads(words.content()) | {"added_tokens": [1]}).encode())
    assert Tokenizer.read(bpe_json()) is None and Tokenizer.read(b"llama_jax tokenizer 1") is None


def test_nothing_there_is_said(tmp_path):
    with pytest.raises(FormatError, match="holds no tokenizer"):
        open_for_training(tmp_path)
    with pytest.raises(FormatError, match="cannot be read"):
        files_of(tmp_path / "tokenizer.json")


def test_the_end_that_only_the_models_config_names_is_kept(folder, tmp_path):
    (folder / "config.json").write_text('{"eos_token_id": [7, 9]}')
    again = open_for_training(copied(folder, tmp_path / "copy"))
    assert {7, 9} < again.ends == open_tokenizer(folder).ends
