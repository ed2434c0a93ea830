"""A packed row gives every token the loss that it has where its document stands alone."""

import json

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from llama_jax.data import JsonLines, LanguageModel, Loader, Prepared, Stream, prepare
from llama_jax.layers.attention import Attention
from llama_jax.layers.block import Block
from llama_jax.layers.mlp import SwiGLU
from llama_jax.layers.stack import Stack
from llama_jax.models.decoder import Decoder
from llama_jax.objectives import CausalLM
from llama_jax.objectives.base import losses
from llama_jax.text import Tokenizer

MOST = 24  # documents of a batch
T, ROWS = 160, 2  # from 128 on the attention of a CPU works in chunks
# The largest of losses near 6 in float32; sums in another order differ by a few units of 5e-7.
APART = 1e-5


@pytest.fixture(scope="module")
def words():
    return Tokenizer.train(["the sea and the land saw a lamb " * 9], 290)


@pytest.fixture(scope="module")
def prepared(words, tmp_path_factory):
    """Documents of 1 to 60 words, and one that is longer than two rows."""
    place, rng = tmp_path_factory.mktemp("packed"), np.random.default_rng(0)
    rows = [" ".join(rng.choice(["sea", "land", "lamb"], n)) for n in (*range(1, 61, 4), 400)]
    (place / "text.jsonl").write_text("\n".join(json.dumps({"text": row}) for row in rows))
    files = {"tokenizer.json": words.content()}
    source = JsonLines(str(place / "text.jsonl"))
    prepare.prepare(source, place / "out", words, files, workers=1)
    return Prepared(str(place / "out"))


@pytest.fixture(scope="module")
def model():
    attention = Attention(4, 2, 8, causal=True)
    block = Block(attention, SwiGLU(32))
    return Decoder(290, 32, Stack((block,))).build()


@pytest.fixture(scope="module")
def params(model):
    init = jax.jit(lambda key, ids: model.init(key, ids, method="readout"))
    return nn.unbox(init(jax.random.key(0), jnp.zeros((1, 4), jnp.int32)))


@pytest.fixture(scope="module")
def token_losses(model, params):
    @jax.jit
    def compute(fields):
        more = {f"{name}_BT": fields[name] for name in ("positions", "segments")}
        logits = model.apply(params, fields["tokens"], method="readout", **more).logits
        logits = jax.nn.log_softmax(logits)
        return -jnp.take_along_axis(logits, fields["targets"][..., None], axis=-1)[..., 0]

    return lambda fields: np.asarray(compute(fields))


@pytest.fixture(scope="module")
def loss(model):
    total = losses({"lm": CausalLM(on="text")})

    def compute(params, fields):
        return nn.apply(total, model)(params, {"text": fields}, jax.random.key(0))[0]

    return jax.jit(jax.value_and_grad(compute))


def batches(prepared, words, pack):
    stream = Stream(prepared, LanguageModel(T, pack=pack), ROWS)
    loader = Loader({"text": stream}, words)
    made = [next(loader)["text"] for _ in range(4)]
    loader.close()
    return made


def alone(batch):
    """The same documents, one a row, where no segments are needed; and where they were."""
    where = []
    for row in range(ROWS):
        for number in range(1, batch["segments"][row].max() + 1):
            where.append((row, np.nonzero(batch["segments"][row] == number)[0]))
    assert len(where) <= MOST
    fields = {name: np.zeros((MOST, T), x.dtype) for name, x in batch.items() if x.ndim == 2}
    for i, (row, at) in enumerate(where):
        for name in ("tokens", "targets"):
            fields[name][i, : len(at)] = batch[name][row, at]
        fields["loss_weights"][i, : len(at)] = 1
    return whole_rows(fields), where


def whole_rows(fields):
    """As one document a row."""
    return fields | {
        "segments": np.ones_like(fields["segments"]),
        "positions": np.tile(np.arange(T, dtype=np.int32), (len(fields["positions"]), 1)),
    }


@pytest.mark.parametrize("pack", ["split", "fit"])
def test_packed_tokens_have_the_loss_of_their_document_alone(prepared, words, token_losses, pack):
    seen = noticed = 0
    for batch in batches(prepared, words, pack):
        fields, where = alone(batch)
        packed, single = token_losses(batch), token_losses(fields)
        blind = token_losses(batch | whole_rows(batch))
        for i, (row, at) in enumerate(where):
            assert np.abs(packed[row, at] - single[i, : len(at)]).max() <= APART
            noticed += np.abs(blind[row, at] - single[i, : len(at)]).max() > 100 * APART
        seen += len(where)
        assert (batch["loss_weights"] == (batch["segments"] > 0)).all()
    assert seen > 20 and noticed > seen / 2  # where documents see each other, the losses differ


@pytest.mark.parametrize("pack", ["split", "fit"])
def test_packed_rows_have_the_loss_and_gradient_of_their_documents(
    prepared, words, params, loss, pack
):
    batch = batches(prepared, words, pack)[2]
    batch = {name: x for name, x in batch.items() if x.ndim == 2}
    one, gradient = loss(params, batch)
    two, expected = loss(params, alone(batch)[0])
    assert abs(one - two) <= APART
    scale = max(float(jnp.abs(x).max()) for x in jax.tree.leaves(expected))
    for a, b in zip(jax.tree.leaves(gradient), jax.tree.leaves(expected), strict=True):
        assert float(jnp.abs(a - b).max()) <= APART * scale


def test_no_first_token_is_predicted_from_the_document_before(prepared, words):
    # <bos> begins every document and <eos> ends it.
    for batch in batches(prepared, words, "split"):
        assert not (batch["targets"] == words.bos).any()
        assert not (batch["tokens"] == words.eos).any()
