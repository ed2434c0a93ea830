"""A file of the first format, which runs up to commit 2babaf5 hold."""

import pathlib
import shutil

import pytest

from llama_jax.text import Tokenizer, open_tokenizer
from llama_jax.text.digest import digest
from llama_jax.text.files import open_for_training

# Made by Tokenizer.train([the two texts below] * 9, 300, sentinels=4).save at commit 2babaf5:
# "the sea and the land saw a lamb", "naïve 🙂 what color is the circle?".
FILE = pathlib.Path(__file__).parent / "old_tokenizer.json"

# Of that commit: the ids in training, and those in generating where a text begins with a space.
IDS = {
    "the lamb saw the sea": [268, 271, 274, 75, 272, 276, 268, 272, 279],
    " two  spaces ": [230, 93, 96, 88, 230, 272, 89, 74, 76, 78, 92, 230],
    "naïve 你好 🙂": [293, 288, 230, 170, 131, 264, 171, 108, 131, 295, 296],
    "<eos>": [230, 37, 78, 88, 92, 39],
    "": [],
}
DIGEST = "3ec76853032768a643834b05ea3a2bdc1dcdf7b55864411b78d500926994eb38"
DIGEST_IN_GENERATING = "ebecf61d19ca5cdd1912a485ffb9e785746192b2fd4effbf2e284ab6e9fbee44"


@pytest.fixture
def folder(tmp_path):
    """A run directory as that commit left it."""
    shutil.copy(FILE, tmp_path / "tokenizer.json")
    return tmp_path


@pytest.mark.parametrize("text", IDS)
def test_an_old_file_gives_the_same_ids(folder, text):
    words = open_for_training(folder)
    assert isinstance(words, Tokenizer)
    assert words.encode(text) == IDS[text] and words.encode_all([text]) == [IDS[text]]
    blank = IDS[" two  spaces "][:1] if text.startswith(" ") else []
    assert open_tokenizer(folder).encode(text) == blank + IDS[text]


def test_an_old_file_has_the_same_special_tokens_and_sizes():
    words = Tokenizer.load(FILE)
    assert (words.vocab, words.used, words.reserved) == (300, 300, 10)


def test_data_prepared_with_an_old_file_fit_the_tokenizer_in_either_form(folder):
    assert digest(Tokenizer.load(FILE)) == DIGEST
    assert digest(open_tokenizer(folder)) == DIGEST_IN_GENERATING
    Tokenizer.load(FILE).save(folder / "tokenizer.json")
    assert digest(open_for_training(folder)) == DIGEST
    assert digest(open_tokenizer(folder)) == DIGEST_IN_GENERATING


def test_an_old_file_is_saved_in_the_new_form(folder):
    words = Tokenizer.load(FILE)
    words.save(folder / "tokenizer.json")
    assert b"llama_jax tokenizer 1" not in (folder / "tokenizer.json").read_bytes()
    again = Tokenizer.load(folder / "tokenizer.json")
    assert again.tables() == words.tables() and again.reserved == words.reserved
