"""Quantised matrices: what other programs unpacked, bit for bit; definitions; what is refused."""

import json
import struct
from pathlib import Path

import numpy as np
import pytest

from llama_jax.formats.quantised import rows
from llama_jax.formats.quantised.expand import expanded
from llama_jax.formats.quantised.scheme import scheme_of
from llama_jax.formats.source import safetensors

# Packed and unpacked by the packages that define the formats (tests/parity/packed.py writes them).
CASES = sorted((Path(__file__).parent / "packed").glob("*.safetensors"))


def told(file: Path) -> dict:
    """What a case says in its header of quantization_config."""
    data = file.read_bytes()
    [length] = struct.unpack("<Q", data[:8])
    return json.loads(json.loads(data[8 : 8 + length])["__metadata__"]["config"])


def opened(place: Path, config: dict):
    return expanded(safetensors(place), scheme_of({"quantization_config": config}, "config.json"))


def bits(array: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(array).view(np.uint8)


@pytest.mark.parametrize("file", CASES, ids=lambda file: file.stem)
def test_a_matrix_is_what_the_package_unpacks_bit_for_bit(file, monkeypatch):
    monkeypatch.setattr(rows, "AT_A_TIME", 1)  # eight rows at a time
    source = opened(file, told(file))
    found, wanted = source.read("m.weight"), source.read("dense")
    assert sorted(source.tensors) == ["dense", "m.weight"]
    assert source.tensors["m.weight"].shape == found.shape == wanted.shape
    assert found.dtype == wanted.dtype
    np.testing.assert_array_equal(bits(found), bits(wanted))
