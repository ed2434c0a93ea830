"""What `llama-jax demo` trains beside seed_demo and seed_vqa, each in about a minute of a CPU core.

seed_vqa -> seed_demo_talk             dialogues about pictures
seed_demo_words -> seed_demo_draw      pictures from captions
seed_demo_clips                        which way a shape moves
"""

import dataclasses
from typing import Any

from llama_jax.config import BPE, Run
from llama_jax.data import Drawing, Pixels, Questions, Stream, Tfds
from llama_jax.data.only import Only
from llama_jax.models.image_tokenizer import ImageTokenizer
from llama_jax.models.multimodal import Multimodal
from llama_jax.models.stem import Convolutions
from llama_jax.objectives import Seq2Seq
from llama_jax.optim.optimizer import AdamW
from llama_jax.presets import drawing, moving, seed

# A part of the data is enough for so few steps, and is made sooner.
DIALOGUES = Tfds("easy_vqa_dialogues", limit=10_000)
CLIPS = Only(Tfds("easy_vqa_clips", limit=6000), "kind", "one")


def seed_demo_talk() -> Run:
    """Fine-tune seed_vqa on dialogues about pictures; give --init-from (a minute on a CPU)."""
    asked = Questions(length=44, answer_length=3, per_image=3)
    return _short(
        seed.seed_vqa(),
        name="seed_demo_talk",
        data={"dialogues": Stream(DIALOGUES, asked, 48)},
        objectives={"talk": Seq2Seq(on="dialogues")},
        steps=250,
    )


def seed_demo_words() -> Run:
    """Train what makes words of pictures, for seed_demo_draw (a minute on a CPU)."""
    words = drawing.seed_image_tokenizer()
    # Many small steps: 32 pictures a step do worse in the same time.
    pictures = Stream(drawing.PICTURES, Pixels(), batch=8)
    return _short(
        words,
        name="seed_demo_words",
        model=_drawer(),
        data={"pictures": pictures},
        optimizer=_optimizer(words, rate=4e-3),
        steps=2500,
    )


def seed_demo_draw() -> Run:
    """Draw pictures from captions; give --init-from a run of seed_demo_words (minutes)."""
    drawings = Stream(drawing.PICTURES, Drawing(length=16, caption="captions"), batch=16)
    draw = drawing.seed_draw()
    return _short(
        draw,
        name="seed_demo_draw",
        model=_drawer(),
        data={"drawings": drawings},
        optimizer=_optimizer(draw, rate=3e-3, weight_decay=0.02),
        steps=1700,
    )


def seed_demo_clips() -> Run:
    """Questions about clips of one shape, from nothing (a minute on a CPU)."""
    run = moving.seed_clips()
    asked = dataclasses.replace(run.data["clips"].task, per_image=1)
    return _short(
        run,
        name="seed_demo_clips",
        data={"clips": Stream(CLIPS, asked, 64)},
        tokenizer=BPE(vocab=moving.VOCAB, corpus=(CLIPS,)),
        steps=200,
    )


def _drawer() -> Multimodal:
    """That of seed_draw, narrower."""
    words = ImageTokenizer(64, Convolutions((16, 32)), drawing.WORDS, depth=1)
    return dataclasses.replace(drawing.drawer(width=96), pictures=words)


def _optimizer(run: Run, **fields) -> AdamW:
    """The optimizer of a run with other fields."""
    optimizer: Any = run.optimizer
    return dataclasses.replace(optimizer, **fields)


def _short(run: Run, steps: int, **fields) -> Run:
    """A run with other fields, that is saved once."""
    return dataclasses.replace(run, steps=steps, save_every=steps, **fields)
