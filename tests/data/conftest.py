"""A tokenizer, a small and the whole prepared data, shared by the tests of this folder."""

import os

import pytest

from llama_jax.data import Tfds, texts
from llama_jax.text import Tokenizer


@pytest.fixture(scope="session")
def data_dir(tmp_path_factory):
    """A folder of prepared data: $LLAMA_JAX_DATA, else one that lives as long as the tests."""
    return os.environ.get("LLAMA_JAX_DATA") or str(tmp_path_factory.mktemp("tfds"))


@pytest.fixture(scope="session")
def pictures(data_dir):
    return Tfds("easy_vqa", "train", data_dir=data_dir, limit=40)


@pytest.fixture(scope="session")
def chapters(data_dir):
    return Tfds("kjv", "train", data_dir=data_dir, limit=12)


@pytest.fixture(scope="session")
def tokenizer(pictures, chapters):
    return Tokenizer.train([t for source in (pictures, chapters) for t in texts(source)], 600)
