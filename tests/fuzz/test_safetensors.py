"""Damaged .safetensors files: loaded and checked, or refused by type."""

from pathlib import Path

import numpy as np
import pytest

from llama_jax.families.huggingface_names import NAMES as HUGGING_FACE
from llama_jax.families.llama import FAMILY
from llama_jax.families.names import tensors
from llama_jax.formats.source import safetensors
from tests.fuzz.mutate import damaged, run
from tests.weights.small import CONFIG, save, weights

pytestmark = pytest.mark.fuzz

COUNT = 2000
# Small, so that most of the file is header, where most can go wrong.
SIZES = {"vocab_size": 6, "hidden_size": 8, "intermediate_size": 4, "num_hidden_layers": 1}


def read(data: bytes, folder: Path) -> None:
    """Every tensor of a file, in the shapes that the config asks for."""
    (folder / "model.safetensors").write_bytes(data)
    source = safetensors(folder)
    wanted = {
        n.tensor: n.shape for n in tensors(FAMILY.huggingface.model(CONFIG | SIZES), HUGGING_FACE)
    }
    source.check(wanted)
    for name, shape in wanted.items():
        tensor = source.read(name)
        assert tensor.shape == shape and tensor.dtype.name == source.tensors[name].dtype
        np.isfinite(tensor)


def test_damaged_files_are_refused_by_type(tmp_path):
    good = save(tmp_path, weights(**SIZES), **SIZES) / "model.safetensors"
    report = run(f"{__name__}:read", damaged(good.read_bytes(), COUNT))
    print(report)
    assert not report.problems, report
    assert report.loaded and report.refused > COUNT / 2, report
