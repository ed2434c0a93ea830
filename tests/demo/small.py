"""A demo of a few steps with a tiny model, made once for all tests that need a finished one."""

import contextlib
import dataclasses
import fcntl
import functools
import os
from pathlib import Path
from unittest import mock

import jax

from llama_jax.axes import make_mesh
from llama_jax.config import BPE, Run
from llama_jax.data import (
    Captions,
    Drawing,
    Pixels,
    Questions,
    SentencePairs,
    Stream,
    Tfds,
)
from llama_jax.data.corrupt import Masking
from llama_jax.data.only import Only
from llama_jax.demo.stages import STAGES
from llama_jax.layers.attention import Attention
from llama_jax.layers.block import Block
from llama_jax.layers.mlp import SwiGLU
from llama_jax.layers.rope import Rope
from llama_jax.layers.stack import Stack
from llama_jax.models.decoder import Decoder
from llama_jax.models.fsq import FSQ
from llama_jax.models.fusion import Late
from llama_jax.models.image_tokenizer import ImageTokenizer
from llama_jax.models.multimodal import Multimodal
from llama_jax.models.stem import Convolutions, Patches
from llama_jax.models.text_encoder import TextEncoder
from llama_jax.models.vision import SpaceTime, VisionEncoder
from llama_jax.objectives import ITC, ITM, MLM, NSP, Draw, Reconstruct, Seq2Seq

PICTURES = Tfds("easy_vqa", limit=16)
KJV = Tfds("kjv", limit=8)
DIALOGUES = Tfds("easy_vqa_dialogues", limit=10)
CLIPS = Only(Tfds("easy_vqa_clips", limit=9), "kind", "one")
FRAMES, SIDE = 2, 16
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
        fusion=Late(),
        decoder=Decoder(VOCAB, WIDTH, Stack((writer,))),
    )


def run(name: str, data: dict[str, Stream], **fields) -> Run:
    """Two steps with a tiny model and a little data."""
    corpus = BPE(VOCAB, (KJV, PICTURES))
    return Run(name, model(), data, tokenizer=corpus, steps=2, log_every=1, **fields)


def pretrain() -> Run:
    data = {
        "documents": Stream(KJV, SentencePairs(length=32, mlm=Masking(predictions=4)), 8),
        "captions": Stream(PICTURES, Captions(length=16), 8),
    }
    sentences = {"mlm": MLM(on="documents"), "nsp": NSP(on="documents")}
    pictures = {"itc": ITC(on="captions"), "itm": ITM(on="captions", rows=8)}
    return run("seed_demo", data, objectives=sentences | pictures)


def finetune() -> Run:
    questions = Stream(PICTURES, Questions(length=24, answer_length=3, per_image=1), 8)
    return run("seed_vqa", {"questions": questions}, objectives={"vqa": Seq2Seq(on="questions")})


def talk() -> Run:
    dialogues = Stream(DIALOGUES, Questions(length=96, answer_length=3, per_image=3), 6)
    return run("talk", {"dialogues": dialogues}, objectives={"talk": Seq2Seq(on="dialogues")})


def drawer(run: Run) -> Run:
    """With words of 16 x 16 pixels for pictures, of which one alone is drawn."""
    words = ImageTokenizer(8, Convolutions((4, 4, 4)), FSQ((3, 3)), depth=1)
    return dataclasses.replace(
        run, model=dataclasses.replace(run.model, vision=None, pictures=words)
    )


def words() -> Run:
    pixels = {"pictures": Stream(PICTURES, Pixels(size=SIDE), 4)}
    return drawer(run("words", pixels, objectives={"words": Reconstruct(on="pictures")}))


def draw() -> Run:
    task = Drawing(length=32, size=SIDE, caption="captions")
    drawings = {"drawings": Stream(PICTURES, task, 4)}
    return drawer(run("draw", drawings, objectives={"draw": Draw(on="drawings")}))


def clips() -> Run:
    task = Questions(32, 3, per_image=1, image="video", frames=FRAMES)
    return run(
        "clips", {"clips": Stream(CLIPS, task, 2)}, objectives={"clips": Seq2Seq(on="clips")}
    )


def runs() -> dict[str, Run]:
    """A run for every stage of the demo."""
    made = (pretrain(), finetune(), talk(), words(), draw(), clips())
    return dict(zip((stage.name for stage in STAGES), made, strict=True))


@functools.cache
def demo() -> Path:
    """The folder of a finished demo; tests that change it work on a copy.

    The worker of the tests that needs it first makes it for all.
    """
    from llama_jax.demo import main

    shared = Path(os.environ["LLAMA_JAX_TESTS"])
    with (shared / "demo.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (shared / "demo" / "report.html").exists():
            with quick():
                main(shared / "demo", runs())
    return shared / "demo"


@contextlib.contextmanager
def quick():
    """One device, no optimizations, baselines of few rows: nearly all the time is compiling."""
    one = lambda mesh, devices=None: make_mesh(devices=jax.devices()[:1])  # noqa: E731
    jax.config.update("jax_disable_most_optimizations", True)
    try:
        with (
            mock.patch("llama_jax.config.Mesh.build", one),
            mock.patch("llama_jax.evals.text.SAMPLE", 100),
        ):
            yield
    finally:
        jax.config.update("jax_disable_most_optimizations", False)
