"""All objectives in one step of a tiny real model: shared passes, and exactly the heads in use."""

import flax.linen as nn
import jax
import numpy as np
import pytest

from llama_jax import axes
from llama_jax.layers.attention import Attention
from llama_jax.layers.block import Block
from llama_jax.layers.mlp import SwiGLU
from llama_jax.layers.rope import Rope
from llama_jax.layers.stack import Stack
from llama_jax.models.coattention import CoAttention
from llama_jax.models.decoder import Decoder
from llama_jax.models.multimodal import Multimodal, MultimodalModule
from llama_jax.models.stem import Patches
from llama_jax.models.text_encoder import TextEncoder
from llama_jax.models.vision import SpaceTime, VisionEncoder
from llama_jax.objectives import (
    ITC,
    ITM,
    MLM,
    NSP,
    SOP,
    Caption,
    CausalLM,
    Classify,
    Seq2Seq,
    SigmoidITC,
    losses,
)
from tests.shapes import shapes

KEY = jax.random.key(0)
WIDTH, VOCAB, ROPE = 8, 11, Rope()


def block(rope=ROPE, **fields):
    attention = {"heads": 2, "kv_heads": 1, "head_dim": 8}
    own = Attention(**attention, rope=rope, causal=fields.pop("causal", False))
    if fields.pop("reads", False):
        fields["cross"] = Attention(**attention, rope=None)
    return Block(own, SwiGLU(8), **fields)


def model():
    flat = Attention(2, 1, 8, rope=None)
    return Multimodal(
        text=TextEncoder(VOCAB, WIDTH, Stack((block(),))),
        fusion=CoAttention(flat, block(None), layers=1),
        vision=VisionEncoder(
            WIDTH, SpaceTime(Stack((block(Rope(split=(2, 1, 1))),))), stem=Patches(2)
        ),
        decoder=Decoder(VOCAB, WIDTH, Stack((block(causal=True, reads=True),))),
    ).build()


PRETRAIN = {
    "mlm": MLM("documents"),
    "nsp": NSP("documents"),
    "itc": ITC("captions"),
    "itm": ITM("captions"),
}
EVERYTHING = PRETRAIN | {
    "sop": SOP("documents"),
    "sigmoid": SigmoidITC("captions", weight=0.1),
    "caption": Caption("captions"),
    "answer": Seq2Seq("captions", label_smoothing=0.1, z_loss=1e-4),
    "grounded": MLM("captions", source="fused"),
    "lm": CausalLM("text"),
    "class": Classify("labelled", labels=2),
}


def weights(objectives, batch):
    """Random numbers in the shape of the parameters: compiling initializers takes longer."""
    made = shapes(nn.init(losses(objectives), model()), KEY, batch, KEY)
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda s: rng.normal(0, 0.4, s.shape).astype(s.dtype), made)


@pytest.fixture
def everything(batch):
    captions = batch["captions"]
    names = ("mlm_positions", "mlm_targets", "mlm_weights")
    captions |= {name: np.concatenate([batch["documents"][name] % 5] * 2) for name in names}
    decoder = {name: captions[name] for name in ("tokens", "targets", "loss_weights")}
    labelled = {"image": captions["image"], "label": np.arange(8, dtype=np.int32) % 2}
    return batch | {"text": decoder, "labelled": labelled}


def test_exactly_the_heads_in_use_are_created(batch):
    def created(objectives):
        return shapes(nn.init(losses(objectives), model()), KEY, batch, KEY)["params"]

    both = {"embed", "text", "masked_head", "next_head"}
    assert set(created({k: PRETRAIN[k] for k in ("mlm", "nsp")})) == both
    params = created(PRETRAIN)
    assert set(params) == both | {"vision", "fusion", "align_head", "match_head"}
    assert set(params["align_head"]) == {"to_text", "to_image", "tau"}
    params = created({"c": Caption("captions")})
    assert set(params) == {"embed", "vision", "fusion", "norm", "decoder"}
    params = created({"s": SigmoidITC("captions")})
    assert set(params["align_head"]) == {"to_text", "to_image", "tau", "shift"}


def test_pretraining_is_two_text_passes_one_image_pass_and_one_fused_pass(batch):
    calls = []

    def count(call, args, kwargs, context):
        if isinstance(context.module, MultimodalModule):
            calls.append(context.method_name)
        return call(*args, **kwargs)

    def run(params):
        with nn.intercept_methods(count):
            return nn.apply(losses(PRETRAIN), model())(params, batch, KEY)

    params = shapes(nn.init(losses(PRETRAIN), model()), KEY, batch, KEY)
    jax.eval_shape(run, params)
    towers = ("encode_text", "encode_image", "fuse", "readout")
    # Documents (for MLM and NSP together) and captions (for ITC and ITM together).
    assert [calls.count(name) for name in towers] == [2, 1, 1, 0]


def test_every_objective_in_one_step_has_finite_gradients_for_every_weight(everything):
    params = weights(EVERYTHING, everything)
    step = nn.apply(losses(EVERYTHING), model())
    gradients = jax.jit(jax.value_and_grad(step, has_aux=True))
    (total, found), grads = gradients(params, everything, KEY)
    assert np.isfinite(total)
    assert set(found) == set(EVERYTHING)
    expected = sum(o.weight * found[k].sum / found[k].count for k, o in EVERYTHING.items())
    assert total == pytest.approx(float(expected), rel=1e-6)
    for path, grad in jax.tree_util.tree_leaves_with_path(grads):
        assert np.all(np.isfinite(grad)), path
        assert np.any(grad), path


def test_itc_and_itm_of_the_model_are_the_same_on_one_and_on_eight_devices(batch):
    objectives = {"itc": ITC("captions"), "itm": ITM("captions")}
    data = {"captions": batch["captions"]}
    params = weights(objectives, data)
    step = nn.apply(losses(objectives), model())

    def run(devices):
        mesh = axes.make_mesh(data=devices, devices=jax.devices()[:devices])
        with axes.using(mesh):
            rows = jax.NamedSharding(mesh, axes.activation_spec("B"))
            everywhere = jax.NamedSharding(mesh, jax.sharding.PartitionSpec())
            gradients = jax.jit(jax.value_and_grad(step, has_aux=True))
            return jax.device_get(
                gradients(
                    jax.device_put(params, everywhere),
                    jax.device_put(data, rows),
                    jax.random.key(1),
                )
            )

    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-6), run(1), run(8)
    )
