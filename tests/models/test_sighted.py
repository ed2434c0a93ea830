"""A frozen language model with eyes: what it was without a picture, and it learns to look."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from llama_jax.config import File, Run
from llama_jax.data import Replies, Stream
from llama_jax.errors import UserError
from llama_jax.evals.report import evaluate
from llama_jax.layers.attention import Attention
from llama_jax.layers.block import Block, Gated
from llama_jax.layers.mlp import SwiGLU
from llama_jax.layers.stack import Stack
from llama_jax.models.decoder import Decoder
from llama_jax.models.sighted import Sighted
from llama_jax.models.stem import Patches
from llama_jax.models.vision import SpaceTime, VisionEncoder
from llama_jax.objectives import Reply
from llama_jax.optim.optimizer import AdamW, Constant
from llama_jax.train.init_from import Start
from llama_jax.train.load import load
from llama_jax.train.loop import train
from llama_jax.trees import flat
from tests.demo.small import PICTURES
from tests.generate import small

IDS = jnp.arange(1, 13, dtype=jnp.int32).reshape(2, 6)
PIXELS = jax.random.uniform(jax.random.key(3), (2, 16, 16, 3), minval=-1)
FFN = SwiGLU(48)


def attention(**changes) -> Attention:
    return Attention(4, 2, 8, **changes)


def model(start=0.0) -> Sighted:
    plain = Block(attention(causal=True), FFN)
    seeing = Block(attention(causal=True), FFN, cross=Gated(attention(rope=None), start))
    look = Stack((Block(Attention(2, 2, 8, rope=None), SwiGLU(24)),))
    return Sighted(
        Decoder(small.VOCAB, 32, Stack((plain,))),
        Stack((seeing,)),
        VisionEncoder(16, SpaceTime(look), stem=Patches(8)),
    )


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return small.folder(tmp_path_factory.mktemp("sighted") / "hf")


def run(place, config, **changes) -> Run:
    groups = (("*/cross*", 1.0), ("*/gate", 10.0), ("vision/*", 1.0), ("norm/*", 1.0), ("*", 0.0))
    task = Replies(length=64, answer_length=24, per_text=2, size=16)
    return Run(
        name="eyes",
        model=config,
        data={"questions": Stream(PICTURES, task, 16)},
        objectives={"vqa": Reply(on="questions")},
        optimizer=AdamW(rate=1e-2, schedule=Constant(), groups=groups),
        tokenizer=File(cls="<s>", sep="</s>"),
        init_from=str(place),
        **changes,
    )


@pytest.fixture(scope="module")
def params(place):
    """The small language model's weights in one whose gates are open."""
    config = model(start=1.0)

    def both(m, ids, pixels):
        return m.decode(ids, m.join({"image": m.encode_image(pixels)}))[0]

    module = config.build()
    made = jax.jit(lambda: module.init(jax.random.key(0), IDS, PIXELS, method=both))()["params"]
    fresh = jax.tree.map(lambda b: b.value, made, is_leaf=lambda x: hasattr(x, "letters"))
    return Start.of(run(place, config)).weights(fresh, lambda line: None)


def logits(params, valid=None, seen=True):
    def read(m, ids, pixels):
        memory = m.join({"image": m.encode_image(pixels, valid)}) if seen else None
        return m.decode(ids, memory)[0]

    return model(1.0).build().apply({"params": params}, IDS, PIXELS, method=read)


def test_without_a_picture_it_is_the_language_model_to_the_bit(params):
    alone = logits(params, seen=False)
    scanned = dataclasses.replace(small.MODEL, stack=dataclasses.replace(small.STACK, scan=True))
    layers = [small.params()["decoder"]["stack"][f"layer_{i}"] for i in range(2)]
    stacked = {"layers": jax.tree.map(lambda *a: jnp.stack(a), *layers)}
    theirs = {"decoder": {**small.params()["decoder"], "stack": stacked}}
    wanted = scanned.build().apply({"params": theirs}, IDS, method="decode")[0]
    np.testing.assert_allclose(alone, wanted, atol=1e-6)
    with jax.disable_jit():
        alone, absent = logits(params, seen=False), logits(params, valid=jnp.array([False, True]))
        wanted = scanned.build().apply({"params": theirs}, IDS, method="decode")[0]
    np.testing.assert_array_equal(alone, wanted)
    np.testing.assert_array_equal(absent[0], wanted[0])
    assert np.abs(np.asarray(absent[1] - wanted[1])).max() > 1e-3


def test_pictures_that_share_a_text_are_answered_as_if_each_had_its_own(params):
    def read(m, ids, pixels):
        memory = m.join({"image": m.encode_image(pixels)})
        return m.hidden(m.embed(ids), memory).x

    apply = model(1.0).build().apply
    shared = apply({"params": params}, IDS[:1], PIXELS, method=read)
    apart = apply({"params": params}, jnp.repeat(IDS[:1], 2, axis=0), PIXELS, method=read)
    np.testing.assert_allclose(shared, apart, atol=1e-6)


def test_a_cache_gives_the_same_logits_token_by_token(params):
    def whole(m, ids, pixels):
        return m.decode(ids, m.join({"image": m.encode_image(pixels)}))[0]

    def steps(m, ids, pixels):
        memory, cache = m.join({"image": m.encode_image(pixels)}), model().empty_cache(2, 6)
        found = []
        for i, given in enumerate((memory, *[None] * 5)):
            logits, cache = m.decode(ids[:, i : i + 1], given, cache)
            found.append(logits)
        return jnp.concatenate(found, axis=1)

    apply = model(1.0).build().apply
    one, many = (apply({"params": params}, IDS, PIXELS, method=how) for how in (whole, steps))
    np.testing.assert_allclose(many, one, atol=1e-5)


def test_blocks_without_cross_attention_are_no_eyes():
    with pytest.raises(UserError, match="eyes: every block needs cross-attention"):
        dataclasses.replace(model(), eyes=Stack((Block(attention(causal=True), FFN),)))


def test_it_learns_to_look_while_the_language_model_stays_as_it_was(place, tmp_path):
    frozen = run(place, model(), steps=3, log_every=1)
    train(frozen, tmp_path / "run", steps=2, progress=False)
    train(frozen, tmp_path / "run", progress=False)
    trained = load(tmp_path / "run")
    now, theirs = flat(trained.params), small.params()["decoder"]
    np.testing.assert_array_equal(now["decoder/embed/w"], theirs["embed"]["w"])
    for i, name in enumerate(("decoder/stack/layers", "eyes/layers")):
        own = flat(theirs["stack"][f"layer_{i}"])
        for path, weight in own.items():
            np.testing.assert_array_equal(now[f"{name}/{path}"][0], weight)
    assert np.all(np.asarray(now["eyes/layers/block_0/gate"]) != 0)
    rows = {row.name: row for row in evaluate(trained, limit=32)}
    assert {"vqa_accuracy", "vqa_accuracy_shuffled_images"} <= rows.keys()
    assert 0 <= rows["vqa_accuracy"].value <= 1 and rows["vqa_accuracy"].count > 16
