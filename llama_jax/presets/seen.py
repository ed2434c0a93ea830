"""Small models of published designs that see, learning easy-VQA from nothing."""

from llama_jax.config import BPE, Run
from llama_jax.data import Seen, SeenAmong, Stream, Tfds
from llama_jax.data.marks import Marks
from llama_jax.data.tiles import HALF, Tiles
from llama_jax.layers.attention import Attention
from llama_jax.layers.block import Block, Gated, Seeing
from llama_jax.layers.mlp import MLP, SwiGLU
from llama_jax.layers.norm import BareNorm, LayerNorm, RMSNorm
from llama_jax.layers.rope import Rope
from llama_jax.layers.stack import Stack
from llama_jax.models.cross_vision import CrossVision
from llama_jax.models.decoder import Decoder
from llama_jax.models.early_vision import EarlyVision
from llama_jax.models.shuffled_vision import ShuffledVision
from llama_jax.models.tiled_vision import TiledVision
from llama_jax.objectives import AmongLM, SeenLM
from llama_jax.optim.optimizer import AdamW, Cosine

PICTURES = Tfds("easy_vqa")
VOCAB, WIDTH, SIDE = 512, 160, 64


def tiny_cross_vision() -> Run:
    """Llama 3.2-Vision's design at 4M parameters, on questions about pictures (hours on a CPU)."""
    task = Seen(length=24, tiles=Tiles(SIDE, 1))
    return Run(
        name="tiny_cross_vision",
        model=CrossVision(_decoder(), _tower()),
        data={"seen": Stream(PICTURES, task, batch=64)},
        objectives={"lm": SeenLM(on="seen")},
        optimizer=AdamW(rate=1e-3, schedule=Cosine(warmup=100, floor=0.02), b2=0.98),
        tokenizer=BPE(vocab=VOCAB, corpus=(PICTURES,)),
        steps=3000,
        save_every=200,
        log_every=20,
    )


def tiny_early_vision() -> Run:
    """Llama 4's way of seeing at 4M parameters, on questions about pictures (hours on a CPU)."""
    tower = _shuffled()
    marks = Marks(*range(VOCAB, VOCAB + 6))  # after the words of the tokenizer
    task = SeenAmong(length=40, tiles=Tiles(SIDE, 1, HALF, HALF), tokens=tower.tokens, marks=marks)
    return Run(
        name="tiny_early_vision",
        model=EarlyVision(_reader(), tower, marks),
        data={"seen": Stream(PICTURES, task, batch=64)},
        objectives={"lm": AmongLM(on="seen")},
        optimizer=AdamW(rate=1e-3, schedule=Cosine(warmup=100, floor=0.02), b2=0.98),
        tokenizer=BPE(vocab=VOCAB, corpus=(PICTURES,)),
        steps=3000,
        save_every=200,
        log_every=20,
    )


def _decoder() -> Decoder:
    ffn, norm = SwiGLU(hidden=432), RMSNorm()
    own = Block(Attention(5, 5, 32, rope=Rope(1e4), causal=True), ffn, norm=norm)
    looks = Gated(Attention(5, 5, 32, rope=None, qk_norm=norm), start=0.5)
    cross = Block(None, Seeing(ffn, start=0.5), cross=looks, norm=norm)
    return Decoder(VOCAB, WIDTH, Stack((own, cross, own), 2), norm=norm, context=256)


def _tower() -> TiledVision:
    attention, mlp, norm = Attention(5, 5, 32, rope=None), MLP(640, bias=True), LayerNorm()
    return TiledVision(
        WIDTH,
        WIDTH,
        local=Stack((Block(attention, mlp, norm=norm),), 4),
        across=Stack((Block(Gated(attention, 0.5), Gated(mlp, 0.5), norm=norm),), 2),
        kept=(1, 2),
        tile=SIDE,
        patch=8,
        tiles=1,
    )


def _reader() -> Decoder:
    """Three layers with rotary positions and one without, as in Llama 4."""
    ffn, norm = SwiGLU(hidden=432), RMSNorm()
    turned = Attention(5, 5, 32, rope=Rope(1e4), causal=True, qk_norm=BareNorm())
    layers = (Block(turned, ffn, norm=norm),) * 3
    bare = Block(Attention(5, 5, 32, rope=None, causal=True), ffn, norm=norm)
    return Decoder(VOCAB + 6, WIDTH, Stack((*layers, bare)), norm=norm, context=256)


def _shuffled() -> ShuffledVision:
    heads = Attention(5, 5, 32, rope=Rope(split=(1, 1)), bias=True, out_bias=True)
    block = Block(heads, MLP(640, bias=True), norm=LayerNorm())
    return ShuffledVision(
        WIDTH, WIDTH, Stack((block,), 6), adapter=320, tile=SIDE, patch=8, tiles=1
    )
