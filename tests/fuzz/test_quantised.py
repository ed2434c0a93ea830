"""Damaged quantised files and their configs: expanded into numbers of their shape, or refused."""

import json
import struct
from pathlib import Path

import pytest

from llama_jax.formats.quantised.expand import expanded
from llama_jax.formats.quantised.scheme import scheme_of
from llama_jax.formats.source import safetensors
from tests.fuzz.mutate import damaged, damaged_json, run

pytestmark = pytest.mark.fuzz

PACKED = Path(__file__).parents[1] / "formats" / "packed"
# A case of each way to pack.
CASES = ["fp8", "ct_int3_zeros", "ct_w8_zeros", "ct_nvfp4", "gptq4_ordered", "awq"]
CASES += ["bnb_int8", "bnb_nf4_double"]
COUNT = 300


def header(data: bytes) -> dict:
    [length] = struct.unpack("<Q", data[:8])
    return json.loads(data[8 : 8 + length])


def expand(file: Path, config: dict) -> None:
    source = expanded(safetensors(file), scheme_of({"quantization_config": config}))
    for name, tensor in source.tensors.items():
        found = source.read(name)
        assert found.shape == tensor.shape and found.dtype.name != "object"


def read_config(data: bytes, folder: Path) -> None:
    """A whole file behind a damaged config, which says of which case it is."""
    told = json.loads(data)
    name = told.get("case") if isinstance(told, dict) else None
    known = name if isinstance(name, str) and name in CASES else CASES[0]
    expand(
        PACKED / f"{known}.safetensors", told.get("config", {}) if isinstance(told, dict) else {}
    )


def read_tensors(data: bytes, folder: Path) -> None:
    """A damaged file behind the config of its case, which its first byte says."""
    whole = (PACKED / f"{CASES[data[0]]}.safetensors").read_bytes()
    (folder / "x.safetensors").write_bytes(data[1:])
    expand(folder / "x.safetensors", json.loads(header(whole)["__metadata__"]["config"]))


def check(report) -> None:
    print(report)
    assert not report.problems, report
    assert report.loaded and report.refused, report


def test_damaged_configs_are_refused_by_type():
    files = []
    for name in CASES:
        whole = header((PACKED / f"{name}.safetensors").read_bytes())["__metadata__"]["config"]
        good = {"case": name, "config": json.loads(whole)}
        files += damaged_json(json.dumps(good).encode(), COUNT)
    check(run(f"{__name__}:read_config", files))


def test_damaged_tensors_are_refused_by_type():
    files = []
    for i, name in enumerate(CASES):
        good = (PACKED / f"{name}.safetensors").read_bytes()
        files += [bytes([i]) + data for data in damaged(good, COUNT)]
    check(run(f"{__name__}:read_tensors", files))
