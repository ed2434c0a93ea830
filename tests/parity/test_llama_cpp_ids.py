"""Tokenizers of GGUF files give the ids that llama.cpp gives, asked through its own server."""

import contextlib
import json
import urllib.request

import jax
import numpy as np
import pytest

pytest.importorskip("transformers")
xllamacpp = pytest.importorskip("xllamacpp")

from llama_jax.errors import FormatError  # noqa: E402
from llama_jax.layers.attention import Attention  # noqa: E402
from llama_jax.layers.block import Block  # noqa: E402
from llama_jax.layers.mlp import SwiGLU  # noqa: E402
from llama_jax.layers.rope import Rope  # noqa: E402
from llama_jax.layers.stack import Stack  # noqa: E402
from llama_jax.models.decoder import Decoder  # noqa: E402
from llama_jax.text import open_tokenizer  # noqa: E402
from llama_jax.text.gguf import OWN_FILE, from_fields, to_fields  # noqa: E402
from llama_jax.text.patterns import PRE  # noqa: E402
from llama_jax.weights.gguf_write import write_gguf  # noqa: E402
from tests.parity.kinds import KINDS, SPECIAL  # noqa: E402
from tests.parity.test_generated_texts import texts  # noqa: E402
from tests.shapes import shapes  # noqa: E402

# What llama.cpp's ids for a text would be compared with is nothing: it ends a text there.
END = "\x00"


@contextlib.contextmanager
def llama_cpp(fields, vocab, path):
    """Asks llama.cpp, which has opened a file of a tiny model with this tokenizer."""
    block = Block(Attention(1, 1, 32, rope=Rope(), causal=True), SwiGLU(32))
    model = Decoder(vocab, 32, Stack((block,), 1), context=64)
    given = shapes(model.build().init, jax.random.key(0), np.zeros((1, 2), np.int32))["params"]
    write_gguf(path, model, jax.tree.map(lambda s: np.zeros(s.shape, s.dtype), given), fields)
    settings = xllamacpp.CommonParams()
    settings.model.path = str(path)
    settings.n_ctx, settings.n_parallel, settings.warmup = 64, 1, False
    settings.cpuparams.n_threads = 1
    server = xllamacpp.Server(settings)  # it stops when nothing refers to it any more
    place = f"{server.listening_address}/tokenize"

    def ids(text: str) -> list[int]:
        asked = {"content": text, "add_special": False, "parse_special": False}
        request = urllib.request.Request(
            place,
            json.dumps(asked).encode(),
            {"Content-Type": "application/json"},
        )
        with urllib.request.urlopen(request, timeout=60) as answer:
            return json.load(answer)["tokens"]

    yield ids
    del server


def compare(fields, path):
    ours = from_fields(fields)
    with llama_cpp(fields, ours.vocab, path) as theirs:
        for text in texts(7, SPECIAL[3:]):
            if END not in text:
                assert ours.encode(text) == theirs(text), repr(text)


@pytest.mark.parametrize("kind", KINDS)
def test_a_file_of_every_kind_gives_the_ids_of_llama_cpp_or_is_refused(kind, tmp_path):
    try:
        fields = to_fields(open_tokenizer(KINDS[kind](tmp_path / "it")))
    except FormatError as error:
        assert "keep its own files" in str(error) or "GGUF has no name" in str(error)
        return
    # Files of others have no tokenizer.json in them, and llama.cpp reads none.
    fields.pop(OWN_FILE, None)
    compare(fields, tmp_path / "x.gguf")


@pytest.mark.parametrize("pre", PRE)
def test_words_are_cut_as_llama_cpp_cuts_them(pre, tmp_path):
    fields = to_fields(open_tokenizer(KINDS["bytes"](tmp_path / "it")))
    fields.pop(OWN_FILE, None)
    compare(fields | {"tokenizer.ggml.pre": pre}, tmp_path / "x.gguf")
