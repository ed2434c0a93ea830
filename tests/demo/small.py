"""A demo of a few steps with a tiny model, made once for all tests that need a finished one."""

import atexit
import dataclasses
import functools
import shutil
import tempfile
from pathlib import Path

from llama_jax import presets
from llama_jax.config import BPE, Run, edit
from llama_jax.data import Captions, Questions, SentencePairs, Stream, Tfds
from llama_jax.data.corrupt import Masking
from llama_jax.layers.attention import Attention
from llama_jax.layers.block import Block
from llama_jax.layers.mlp import SwiGLU
from llama_jax.layers.rope import Rope
from llama_jax.layers.stack import Stack
from llama_jax.models.coattention import CoAttention
from llama_jax.models.decoder import Decoder
from llama_jax.models.multimodal import Multimodal
from llama_jax.models.stem import Patches
from llama_jax.models.text import TextEncoder
from llama_jax.models.vision import SpaceTime, VisionEncoder

PICTURES = Tfds("easy_vqa", limit=16)
KJV = Tfds("kjv", limit=8)
VOCAB, WIDTH = 400, 16


def model() -> Multimodal:
    def block(rope, **fields):
        return Block(Attention(2, 2, 8, rope=rope, **fields), SwiGLU(24))

    plain = block(Rope())
    patches = Stack((block(Rope(theta=100.0, split=(0, 1, 1))),))
    writer = dataclasses.replace(block(Rope(), causal=True), cross=Attention(2, 2, 8, rope=None))
    return Multimodal(
        text=TextEncoder(VOCAB, WIDTH, Stack((plain,)), types=2),
        vision=VisionEncoder(WIDTH, SpaceTime(patches), stem=Patches(16)),
        fusion=CoAttention(Attention(2, 2, 8, rope=None), plain, layers=1),
        decoder=Decoder(VOCAB, WIDTH, Stack((writer,))),
    )


def small(run: Run, data: dict[str, Stream]) -> Run:
    """The preset with a tiny model, a little data and two steps."""
    return dataclasses.replace(
        run, model=model(), data=data, tokenizer=BPE(VOCAB, (KJV, PICTURES)), steps=2, log_every=1
    )


def pretrain() -> Run:
    documents = Stream(KJV, SentencePairs(length=32, mlm=Masking(predictions=4)), 8)
    captions = Stream(PICTURES, Captions(length=16), 8)
    run = edit(presets.get("seed_demo"), "objectives.itm.rows", 8)
    return small(run, {"documents": documents, "captions": captions})


def finetune() -> Run:
    questions = Stream(PICTURES, Questions(length=16, answer_length=3, per_image=1), 8)
    return small(presets.get("seed_vqa"), {"questions": questions})


@functools.cache
def demo() -> Path:
    """The folder of a finished demo; tests that change it work on a copy."""
    from llama_jax.demo import main

    folder = Path(tempfile.mkdtemp())
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    main(folder / "demo", pretrain(), finetune())
    return folder / "demo"
