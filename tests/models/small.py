"""Small models that several tests build."""

import flax.linen as nn
import jax
import numpy as np

from llama_jax.layers.attention import Attention
from llama_jax.layers.block import Block
from llama_jax.layers.mlp import SwiGLU
from llama_jax.layers.positions import Learned
from llama_jax.layers.rope import Rope
from llama_jax.layers.stack import Stack
from llama_jax.models.coattention import CoAttention
from llama_jax.models.decoder import Decoder
from llama_jax.models.multimodal import Multimodal
from llama_jax.models.stem import Patches
from llama_jax.models.text_encoder import TextEncoder
from llama_jax.models.vision import SpaceTime, VisionEncoder
from tests.shapes import shapes

V, D, F, H = 50, 16, 24, 8
FFN = SwiGLU(F)


ROPE = Rope()


def attention(rope=ROPE, **fields):
    return Attention(heads=2, kv_heads=1, head_dim=H, rope=rope, **fields)


BLOCK = Block(attention(), FFN)
WRITER = Block(attention(causal=True), FFN, cross=attention(rope=None))


def vision(**fields):
    layers = SpaceTime(Stack((Block(attention(Rope(100.0, (2, 1, 1))), FFN),)))
    fields = {
        "stem": Patches(4),
        "positions": Learned((4, 4, 4)),
        "merge": 2,
        "layers": layers,
    } | fields
    return VisionEncoder(D, **fields)


def multimodal(fusion=None, **fields):
    parts = {
        "text": TextEncoder(V, D, Stack((BLOCK,)), types=2),
        "vision": vision(),
        "fusion": fusion or CoAttention(attention(rope=None), BLOCK, layers=1),
        "decoder": Decoder(V, D, Stack((WRITER,))),
    }
    return Multimodal(**(parts | fields))


def ids(rows=4, length=6, seed=0):
    return jax.device_put(
        np.random.default_rng(seed).integers(6, V, (rows, length)).astype(np.int32)
    )


def pixels(*shape, seed=1):
    return jax.device_put(
        np.random.default_rng(seed).integers(0, 256, (*shape, 16, 16, 3)).astype(np.uint8)
    )


def start(fn, model, *args):
    """Random parameters of what `fn(model, *args)` uses, and fn as a function of them.

    Only shapes are traced, which is much faster than compiling the initializers.
    """
    made = shapes(nn.init(fn, model), jax.random.key(0), *args)
    rng = np.random.default_rng(0)
    fill = lambda s: jax.device_put(rng.normal(size=s.shape, scale=D**-0.5).astype(s.dtype))  # noqa: E731
    return jax.tree.map(fill, made), jax.jit(nn.apply(fn, model))
