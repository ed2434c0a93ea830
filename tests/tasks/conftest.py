"""Pictures of which questions, dialogues and clips are made."""

import pytest

from llama_jax.data import Tfds


@pytest.fixture(scope="session")
def pictures(data_dir):
    return Tfds("easy_vqa", "train", data_dir=data_dir, limit=40)
