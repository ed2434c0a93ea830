"""A tiny model that draws, with random weights."""

import functools

import jax
import numpy as np

from llama_jax.layers.attention import Attention
from llama_jax.layers.block import Block
from llama_jax.layers.mlp import SwiGLU
from llama_jax.layers.positions import Learned
from llama_jax.layers.stack import Stack
from llama_jax.models.coattention import CoAttention
from llama_jax.models.decoder import Decoder
from llama_jax.models.fsq import FSQ
from llama_jax.models.image_tokenizer import ImageTokenizer
from llama_jax.models.multimodal import Multimodal
from llama_jax.models.stem import Convolutions
from llama_jax.models.text_encoder import TextEncoder
from llama_jax.objectives import Draw, Reconstruct, losses

VOCAB, WIDTH, SIDE = 300, 16, 16
OBJECTIVES = {"draw": Draw(on="drawings"), "reconstruct": Reconstruct(on="drawings")}


def config(vocab: int = VOCAB) -> Multimodal:
    """Sixteen words of 4 x 4 pixels a picture of 16 x 16."""

    def attention(causal: bool = False) -> Attention:
        return Attention(heads=2, kv_heads=2, head_dim=8, rope=None, causal=causal)

    block = Block(attention(), SwiGLU(16))
    writer = Block(attention(causal=True), SwiGLU(16), cross=attention())
    return Multimodal(
        text=TextEncoder(vocab, WIDTH, Stack((block,))),
        fusion=CoAttention(attention(), block, layers=1),
        decoder=Decoder(vocab, WIDTH, Stack((writer,)), positions=Learned((16,))),
        pictures=ImageTokenizer(8, Convolutions((4,)), FSQ((5, 3)), depth=1),
    )


def batch(rows: int = 3) -> dict[str, dict[str, np.ndarray]]:
    """A stream of drawings."""
    rng = np.random.default_rng(0)
    return {
        "drawings": {
            "text": rng.integers(10, VOCAB, (rows, 5)).astype(np.int32),
            "text_valid": np.ones((rows, 5), bool),
            "image": rng.integers(0, 256, (rows, SIDE, SIDE, 3), np.uint8),
            "tokens": np.full((rows, 1), 1, np.int32),
        }
    }


@functools.cache
def drawer():
    """The module, its variables, and pictures."""
    module, given = config().build(), batch()
    init = jax.jit(lambda key: module.init(key, given, key, method=losses(OBJECTIVES)))
    variables = jax.tree.map(lambda x: x, {"params": init(jax.random.key(0))["params"]})
    import flax.linen as nn

    return module, nn.meta.unbox(variables), given["drawings"]["image"]
