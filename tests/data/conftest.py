"""A tokenizer, a small and the whole prepared data, shared by the tests of this folder."""

import pytest

from llama_jax.data import Tfds, texts
from llama_jax.text import Tokenizer


@pytest.fixture(scope="session")
def pictures(data_dir):
    return Tfds("easy_vqa", "train", data_dir=data_dir, limit=40)


@pytest.fixture(scope="session")
def chapters(data_dir):
    return Tfds("kjv", "train", data_dir=data_dir, limit=12)


@pytest.fixture(scope="session")
def tokenizer(pictures, chapters):
    return Tokenizer.train([t for source in (pictures, chapters) for t in texts(source)], 600)
