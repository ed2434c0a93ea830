"""A small model that reads pictures among the words."""

from typing import Any

from llama_jax.data.marks import Marks
from llama_jax.layers.attention import Attention
from llama_jax.layers.block import Block
from llama_jax.layers.mlp import MLP, SwiGLU
from llama_jax.layers.norm import LayerNorm
from llama_jax.layers.rope import Rope
from llama_jax.layers.stack import Stack
from llama_jax.models.decoder import Decoder
from llama_jax.models.early_vision import EarlyVision
from llama_jax.models.shuffled_vision import ShuffledVision

V, D = 40, 16
MARKS = Marks(30, 31, 32, 33, 34, 35)


def config(**own) -> EarlyVision:
    heads = Attention(2, 2, 8, rope=Rope(split=(1, 1)), bias=True, out_bias=True)
    block = Block(heads, MLP(24, bias=True), norm=LayerNorm())
    tower: dict[str, Any] = {
        "width": 16,
        "out": D,
        "adapter": 12,
        "tile": 16,
        "patch": 4,
        "tiles": 4,
    } | own
    vision = ShuffledVision(stack=Stack((block,), scan=False), **tower)
    text = Block(Attention(2, 1, 8, causal=True), SwiGLU(24))
    return EarlyVision(Decoder(V, D, Stack((text,), 2, scan=False), context=512), vision, MARKS)
