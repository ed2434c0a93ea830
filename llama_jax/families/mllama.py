"""Llama 3.2-Vision: a Llama 3 whose cross-attention layers look at pictures of several tiles.

Of Meta's 11B and 90B, and Guard 3 11B. The numbers are those of Meta's reference
(tests/parity/test_llama3_vision.py), from which transformers departs where text comes before the
first picture, and in which layers of the tower are kept.
"""

from dataclasses import replace
from typing import TYPE_CHECKING

from llama_jax.families.base import Family, run
from llama_jax.families.mllama_config import EXTRA, Mllama
from llama_jax.layers.attention import Attention
from llama_jax.layers.block import Block, Gated, Seeing
from llama_jax.layers.mlp import MLP, SwiGLU
from llama_jax.layers.norm import LayerNorm, RMSNorm
from llama_jax.layers.rope import Llama3Rope
from llama_jax.layers.stack import Stack
from llama_jax.models.cross_vision import CrossVision
from llama_jax.models.decoder import Decoder
from llama_jax.models.tiled_vision import TiledVision

if TYPE_CHECKING:
    from llama_jax.config import Run

FAMILY = Family(
    name="mllama",
    about="Llama 3 with gated cross-attention to the tiles of pictures",
    huggingface=Mllama(),
)


def llama3_2_11b_vision() -> "Run":
    """Llama 3.2-Vision 11B: Llama 3.1 8B, eight layers that look at pictures, and the tower."""
    return _run("llama3_2_11b_vision", _model(4096, 8, 32, 14_336))


def llama3_2_90b_vision() -> "Run":
    """Llama 3.2-Vision 90B: Llama 3.1 70B, twenty layers that look, and the tower."""
    return _run("llama3_2_90b_vision", _model(8192, 20, 64, 28_672))


def _run(name: str, model: CrossVision) -> "Run":
    """Questions about pictures; put your own data in their place."""
    from llama_jax.data import Seen, Stream, Tfds
    from llama_jax.data.tiles import Tiles
    from llama_jax.objectives import SeenLM

    task = Seen(length=64, tiles=Tiles(model.vision.tile, model.vision.tiles))
    data = {"seen": Stream(Tfds("easy_vqa"), task, batch=8)}
    return replace(run(name, model), data=data, objectives={"lm": SeenLM(on="seen")})


def _model(width: int, looks: int, heads: int, hidden: int) -> CrossVision:
    ffn, norm = SwiGLU(hidden), RMSNorm()
    own = Block(Attention(heads, 8, 128, rope=Llama3Rope(), causal=True), ffn, norm=norm)
    seen = Gated(Attention(heads, 8, 128, rope=None, qk_norm=norm))
    cross = Block(None, Seeing(ffn), cross=seen, norm=norm)
    decoder = Decoder(
        vocab=128_256,
        width=width,
        stack=Stack((own, own, own, cross, own), looks),
        tied=False,
        norm=norm,
        context=131_072,
    )
    return CrossVision(decoder, _tower(width), EXTRA)


def _tower(out: int) -> TiledVision:
    attention, mlp, norm = Attention(16, 16, 80, rope=None), MLP(5120, bias=True), LayerNorm()
    return TiledVision(
        1280,
        out,
        local=Stack((Block(attention, mlp, norm=norm),), 32),
        across=Stack((Block(Gated(attention), Gated(mlp), norm=norm),), 8),
    )
