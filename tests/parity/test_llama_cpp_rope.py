"""GGUF files of scaled ropes and of biases: llama.cpp's own probabilities, from its server."""

import json
import urllib.request

import jax
import jax.numpy as jnp
import numpy as np
import pytest

pytest.importorskip("transformers")
xllamacpp = pytest.importorskip("xllamacpp")

from llama_jax.layers.attention import Attention  # noqa: E402
from llama_jax.layers.block import Block  # noqa: E402
from llama_jax.layers.mlp import SwiGLU  # noqa: E402
from llama_jax.layers.norm import RMSNorm  # noqa: E402
from llama_jax.layers.rope import Llama3Rope, Rope  # noqa: E402
from llama_jax.layers.rope_scaled import LinearRope, LongRope, YarnRope  # noqa: E402
from llama_jax.layers.stack import Stack  # noqa: E402
from llama_jax.models.decoder import Decoder  # noqa: E402
from llama_jax.text import open_tokenizer  # noqa: E402
from llama_jax.text.gguf import from_fields, to_fields  # noqa: E402
from llama_jax.trees import nested  # noqa: E402
from llama_jax.weights.gguf_write import write_gguf  # noqa: E402
from llama_jax.weights.read import abstract  # noqa: E402
from tests.parity.kinds import KINDS  # noqa: E402

# float32 log-probabilities of order 1, by another program's kernels.
TOLERANCE = 1e-5
PAIRS, SLOTS, NEAREST = 16, 256, 30

dice = np.random.default_rng(0)
SHORT, LONG = (tuple((1 + top * dice.random(PAIRS)).round(3).tolist()) for top in (0.3, 20.0))
ROPES = {
    "llama3": Llama3Rope(1e4, factor=8.0, original=64),
    "linear": LinearRope(1e4, factor=4.0),
    "yarn": YarnRope(1e4, factor=8.0, original=64),
    "yarn, a gain": YarnRope(1e4, factor=8.0, original=64, attention=0.8),
    "longrope": LongRope(1e4, short=SHORT, long=LONG, original=SLOTS, attention=1.2),
    "biases": Rope(1e4),
}


@pytest.fixture(scope="module")
def fields(tmp_path_factory):
    return to_fields(open_tokenizer(KINDS["first"](tmp_path_factory.mktemp("made") / "tokenizer")))


def asked(server, ids):
    """The log-probabilities of some tokens after these; none if its answer is half a character."""
    wanted = {"prompt": ids, "n_predict": 1, "n_probs": NEAREST, "ignore_eos": True}
    request = urllib.request.Request(
        f"{server.listening_address}/completion",
        json.dumps(wanted).encode(),
        {"Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=60) as answer:
        told = json.load(answer).get("completion_probabilities", [])
    return {top["id"]: top["logprob"] for one in told for top in one["top_logprobs"]}


@pytest.mark.parametrize("name", ROPES)
def test_a_file_has_llama_cpp_s_probabilities(name, fields, tmp_path):
    there = name == "biases"
    attention = Attention(
        2, 1, 2 * PAIRS, rope=ROPES[name], causal=True, bias=there, out_bias=there
    )
    norm, vocab = RMSNorm(1e-5), from_fields(fields).vocab
    stack = Stack((Block(attention, SwiGLU(64, bias=there), norm=norm),), 2)
    model = Decoder(vocab, 64, stack, context=SLOTS, norm=norm)
    drawn = {p: 0.3 * dice.normal(size=box.value.shape) for p, box in abstract(model).items()}
    params = {"decoder": nested({p: jnp.asarray(x, jnp.float32) for p, x in drawn.items()})}
    write_gguf(tmp_path / "x.gguf", model, params, fields)
    settings = xllamacpp.CommonParams()
    settings.model.path, settings.warmup = str(tmp_path / "x.gguf"), False
    settings.n_ctx, settings.n_parallel, settings.cpuparams.n_threads = SLOTS, 1, 1
    settings.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
    settings.cache_type_k = settings.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
    server = xllamacpp.Server(settings)  # it stops when nothing refers to it any more
    decode = jax.jit(model.build().apply)
    compared = 0
    for _ in range(20):
        ids = dice.integers(3, vocab, 200).tolist()
        ours = jax.nn.log_softmax(decode({"params": params}, jnp.array([ids]))[0, -1])
        for token, logprob in asked(server, ids).items():
            assert abs(float(ours[token]) - logprob) <= TOLERANCE
            compared += 1
        if compared >= NEAREST:
            break
    assert compared >= NEAREST
    del server
