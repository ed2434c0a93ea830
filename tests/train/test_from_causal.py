"""A causal model inside of an encoder-decoder: each stack is the model that it came from."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from llama_jax.config import File, Run
from llama_jax.data import JsonLines, Seq2Seq, Stream
from llama_jax.errors import UserError
from llama_jax.layers.attention import Attention
from llama_jax.layers.block import Block, Gated
from llama_jax.layers.mlp import SwiGLU
from llama_jax.layers.norm import RMSNorm
from llama_jax.layers.rope import Rope
from llama_jax.layers.stack import Stack
from llama_jax.models.decoder import Decoder
from llama_jax.models.fusion import Late
from llama_jax.models.multimodal import Multimodal
from llama_jax.models.text_encoder import TextEncoder
from llama_jax.objectives import Seq2Seq as Goal
from llama_jax.optim.optimizer import AdamW, Constant
from llama_jax.train.from_causal import otherwise
from llama_jax.train.init_from import Start
from llama_jax.train.load import load
from llama_jax.train.loop import train
from llama_jax.trees import flat
from tests.generate import small

FFN = SwiGLU(48)
IDS = jnp.arange(1, 13, dtype=jnp.int32).reshape(2, 6)
ROLES = File(cls="<s>", sep="</s>")


def attention(causal: bool) -> Attention:
    return Attention(4, 2, 8, causal=causal)


def model(causal_encoder=False, scan=True, periods=2) -> Multimodal:
    """The small language model twice, as encoder and as decoder."""
    reader = Block(attention(causal_encoder), FFN)
    cross = Gated(dataclasses.replace(attention(False), rope=None))
    writer = Block(attention(True), FFN, cross=cross)
    return Multimodal(
        text=TextEncoder(small.VOCAB, 32, Stack((reader,), 2)),
        decoder=Decoder(small.VOCAB, 32, Stack((writer,) * (2 // periods), periods, scan=scan)),
        fusion=Late(),
        norm=None,
    )


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    found = tmp_path_factory.mktemp("causal")
    small.folder(found / "hf")
    lines = [f'{{"source": "the sea {i}", "target": "king {i}"}}' for i in range(16)]
    (found / "pairs.jsonl").write_text("\n".join(lines))
    return found


def run(place, config, **changes) -> Run:
    task = Seq2Seq(length=12, answer_length=8)
    return Run(
        name="pairs",
        model=config,
        data={"pairs": Stream(JsonLines(str(place / "pairs.jsonl")), task, 8)},
        objectives={"write": Goal(on="pairs")},
        optimizer=AdamW(rate=1e-2, schedule=Constant(), clip=None),
        tokenizer=ROLES,
        steps=2,
        init_from=str(place / "hf"),
        **changes,
    )


def begun(place, config, said=None):
    """The parameters that a run of this model begins with."""
    module = config.build()

    def both(m, ids):
        return m.decode(ids, m.join(m.fuse({"text": m.encode_text(ids)})))[0]

    made = jax.jit(lambda: module.init(jax.random.key(0), IDS, method=both))()["params"]
    fresh = jax.tree.map(lambda b: b.value, made, is_leaf=lambda x: hasattr(x, "letters"))
    lines = [] if said is None else said
    return Start.of(run(place, config)).weights(fresh, lines.append)


def test_the_decoder_writes_what_the_causal_model_writes_while_the_gates_are_zero(place):
    params, wanted = begun(place, model()), small.lm().logits(np.asarray(IDS))

    def read(m, ids):
        memory = m.join(m.fuse({"text": m.encode_text(ids[:, ::-1])}))
        return m.decode(ids, memory)[0], m.decode(ids)[0]

    with_memory, alone = model().build().apply({"params": params}, IDS, method=read)
    np.testing.assert_allclose(alone, wanted, atol=1e-5)
    np.testing.assert_array_equal(with_memory, alone)


def test_the_encoder_is_the_causal_model_as_soon_as_it_is_causal(place):
    causal, both = (
        model(one).build().apply({"params": begun(place, model(one))}, IDS, method="encode_text").x
        for one in (True, False)
    )
    tokens = small.MODEL.build()
    variables = {"params": small.params()}
    wanted = tokens.apply(variables, IDS, method=lambda m, ids: m.hidden(m.embed(ids)).x)
    np.testing.assert_allclose(causal, wanted, atol=1e-5)
    assert np.abs(np.asarray(both - causal)).max() > 1e-2


@pytest.mark.parametrize(("scan", "periods"), [(False, 2), (True, 1), (False, 1)])
def test_layers_are_counted_however_the_stack_is_cut(place, scan, periods):
    config = model(scan=scan, periods=periods)
    wanted = small.lm().logits(np.asarray(IDS))
    found = config.build().apply({"params": begun(place, config)}, IDS, method="decode")[0]
    np.testing.assert_allclose(found, wanted, atol=1e-5)


def test_what_is_new_and_what_is_not_is_said(place):
    said: list[str] = []
    params = flat(begun(place, model(), said))
    new = [line for line in said if line.startswith("  new")]
    assert new == ["  new: decoder/stack/layers/block_0/gate (not there)"]
    assert said[0].startswith(f"{len(params) - 1} of {len(params)} weights from ")
    cross, own = (params[f"decoder/stack/layers/block_0/{n}/q/w"] for n in ("cross", "attn"))
    np.testing.assert_array_equal(cross, own)


def test_what_a_stack_does_otherwise_is_said():
    block = Block(dataclasses.replace(attention(False), rope=Rope(500.0)), FFN, norm=RMSNorm(1e-3))
    text = dataclasses.replace(model().text, stack=Stack((block,), 2))
    said = list(otherwise(dataclasses.replace(model(), text=text), small.MODEL))
    assert [line.partition(" is ")[0] for line in said] == [
        "model.text.stack.pattern.0.attention.rope",
        "model.text.stack.pattern.0.norm.eps",
    ]
    assert list(otherwise(model(), small.MODEL)) == []


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            lambda m: dataclasses.replace(m.text, stack=Stack((Block(attention(False), FFN),), 3)),
            "model.text.stack ends with layer 3, there are 2",
        ),
        (
            lambda m: dataclasses.replace(
                m.text, stack=Stack((Block(attention(False), SwiGLU(40)),), 2)
            ),
            "model.text.stack.pattern.0.ffn.hidden is 40, there 48",
        ),
        (
            lambda m: dataclasses.replace(
                m.text, stack=Stack((Block(Attention(4, 4, 8), FFN),), 2)
            ),
            "model.text.stack.pattern.0.attention.kv_heads is 4, there 2",
        ),
    ],
)
def test_other_sizes_are_refused_by_the_name_of_the_field(place, change, said):
    config = dataclasses.replace(model(), text=change(model()))
    with pytest.raises(UserError, match="holds a model of other sizes than pairs") as error:
        Start.of(run(place, config))
    assert said in str(error.value) and "\n" not in str(error.value)


def test_an_encoder_decoder_trains_from_it_resumes_and_writes(place, tmp_path):
    train(run(place, model(), save_every=1), tmp_path / "run", steps=1, progress=False)
    train(run(place, model(), save_every=1), tmp_path / "run", progress=False)
    trained = load(tmp_path / "run")
    assert trained.step == 2
    gate = flat(trained.params)["decoder/stack/layers/block_0/gate"]
    assert np.all(np.asarray(gate) != 0)
    assert trained.tokenizer.named["cls_token"] == "<s>"
