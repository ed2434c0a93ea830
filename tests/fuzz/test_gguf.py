"""Two thousand damaged GGUF files: each is loaded whole, or refused by FormatError."""

import numpy as np
import pytest
from gguf import GGMLQuantizationType, quants
from gguf import GGUFValueType as Type

from llama_jax.families import gguf_llama3
from llama_jax.layers.rope import Llama3Rope
from tests.formats.gguf_bytes import VOCAB, keyed, listed, string, tiny_file, tiny_tensors, told
from tests.fuzz.mutate import damaged, run

pytestmark = pytest.mark.fuzz


def read(data, folder):
    """Opens a file, and reads every tensor of it."""
    from llama_jax.families.gguf_names import PAIRS as GGUF
    from llama_jax.weights.gguf import open_gguf
    from llama_jax.weights.read import read

    (folder / "x.gguf").write_bytes(data)
    found = open_gguf(folder / "x.gguf")
    read(found.model, found.source, GGUF, unused=found.unused)


def good() -> tuple[bytes, bytes]:
    """A file with a tokenizer, scaled rope and blocks, in two parts: header and data."""
    values = tiny_tensors()
    head = values.pop("output.weight")
    values["rope_freqs.weight"] = gguf_llama3.divisors(Llama3Rope(1e4), 8)
    file = tiny_file(values, llama__vocab_size=(Type.UINT32, VOCAB))
    words = [f"<{n}>" for n in range(VOCAB)]
    for key, kind, items in (
        ("tokens", Type.STRING, words),
        ("scores", Type.FLOAT32, np.linspace(-1, 0, VOCAB)),
        ("token_type", Type.INT32, [1] * VOCAB),
    ):
        file.fields.append(keyed(f"tokenizer.ggml.{key}", Type.ARRAY, listed(kind, items)))
    file.fields.append(keyed("tokenizer.chat_template", Type.STRING, string("{{ messages }}")))
    kind = GGMLQuantizationType.Q8_0
    file.tensors.append(told("output.weight", head.shape, kind, len(file.data)))
    file.data += quants.quantize(head, kind).tobytes()
    whole = file.bytes()
    return whole[: -len(file.data)], file.data


def test_damaged_files_are_refused_by_type():
    header, data = good()
    # Most bytes are weights, most that can go wrong is in the header.
    cases = [head + data for head in damaged(header, 1500)] + damaged(header + data, 500, seed=1)
    report = run("tests.fuzz.test_gguf:read", cases)
    print(report)
    assert not report.problems, report
    assert report.loaded > 100 and report.refused > 500, report
