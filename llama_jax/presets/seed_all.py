"""The whole document in one set of weights: every modality, every objective, every use.

seed_all_pretraining -> seed_all                 hours on two CPU cores; both go on after a stop
seed_all_demo_pretraining -> seed_all_demo       the same at half the width, with half the rows
"""

import dataclasses
from dataclasses import dataclass

from llama_jax.config import BPE, Run
from llama_jax.data import (
    Captions,
    Denoise,
    Drawing,
    Masking,
    Questions,
    SentencePairs,
    Stream,
    Tfds,
    Union,
)
from llama_jax.layers.attention import Attention
from llama_jax.layers.block import Block
from llama_jax.layers.mlp import SwiGLU
from llama_jax.layers.positions import Learned
from llama_jax.layers.rope import Rope
from llama_jax.layers.stack import Stack
from llama_jax.models.coattention import CoAttention
from llama_jax.models.decoder import Decoder
from llama_jax.models.image_tokenizer import ImageTokenizer
from llama_jax.models.multimodal import Multimodal
from llama_jax.models.pair_heads import ComparedPair
from llama_jax.models.stem import Convolutions, Patches
from llama_jax.models.text_encoder import TextEncoder
from llama_jax.models.vision import SpaceTime, VisionEncoder
from llama_jax.objectives import ITC, ITM, MIM, MLM, NSP, SOP, Caption, Draw, Reconstruct, Seq2Seq
from llama_jax.optim.optimizer import AdamW, Cosine
from llama_jax.tasks.mixtures import corpus, mixture

KJV, NEWS = Tfds("kjv"), Tfds("bbc_news")
PICTURES, CLIPS, DIALOGUES = Tfds("easy_vqa"), Tfds("easy_vqa_clips"), Tfds("easy_vqa_dialogues")
TASKS = (
    *("number_words", "interface_texts", "mathematics", "replies"),
    *("headlines", "topics", "sentiment"),
)
FRAMES = 8


@dataclass(frozen=True)
class _Size:
    """How large the model is, and how many rows a step has of each kind.

    Attributes:
      vocab: tokens of text, V.
      width: numbers of a vector, D.
      layers: how many the text's encoder has, and the decoder.
      share: rows of a step, of those of `seed_all`.
    """

    vocab: int
    width: int
    layers: int
    share: float

    def rows(self, full: int, each: int = 1) -> int:
        """So many rows, in whole examples of `each`."""
        return max(1, round(full * self.share / each)) * each


FULL = _Size(vocab=6144, width=128, layers=3, share=1.0)
DEMO = _Size(vocab=2048, width=96, layers=2, share=0.5)


def seed_all_pretraining() -> Run:
    """Pre-train the whole system: masked words, sentences, spans, pictures (an hour, two cores)."""
    return _pretraining("seed_all_pretraining", FULL, steps=1500)


def seed_all() -> Run:
    """All tasks at once, from seed_all_pretraining; give --init-from (hours on two cores)."""
    return _all("seed_all", FULL, steps=20_000)


def seed_all_demo_pretraining() -> Run:
    """Pre-train a smaller one of the whole system (minutes on two cores)."""
    return _pretraining("seed_all_demo_pretraining", DEMO, steps=400)


def seed_all_demo() -> Run:
    """All tasks at once in a smaller one; give --init-from seed_all_demo_pretraining's run."""
    return _all("seed_all_demo", DEMO, steps=2000)


def _pretraining(name: str, size: _Size, steps: int) -> Run:
    return _run(name, size, _read(size) | _seen(size), _learned() | {"pixels": _PIXELS}, steps)


def _all(name: str, size: _Size, steps: int) -> Run:
    """Every task; what pre-training learned is kept by going on with its alignment and pairs."""
    data = _read(size) | _seen(size) | _asked(size)
    asked = {stream: Seq2Seq(on=stream) for stream in _asked(size)}
    kept = {n: o for n, o in _learned().items() if n not in ("spans", "mim")}
    kept = {n: dataclasses.replace(o, weight=o.weight * 0.3) for n, o in kept.items()}
    run = _run(name, size, data, asked | kept | {"draw": Draw(on="drawings")}, steps)
    data = {stream: value for stream, value in run.data.items() if stream != "spans"}
    # The image tokenizer stays as it is: its words are what is drawn.
    optimizer = dataclasses.replace(run.optimizer, groups=(("pictures/*", 0.0),))
    return dataclasses.replace(run, data=data, optimizer=optimizer)


def _run(name: str, size: _Size, data: dict, objectives: dict, steps: int) -> Run:
    return Run(
        name=name,
        model=_model(size),
        data=data,
        objectives=objectives,
        optimizer=AdamW(
            rate=1.5e-3, schedule=Cosine(warmup=100, floor=0.02), b2=0.98, weight_decay=0.05
        ),
        tokenizer=BPE(size.vocab, (KJV, NEWS, PICTURES, CLIPS, *corpus(TASKS)), digits="single"),
        steps=steps,
        save_every=100,
        log_every=20,
        keep=1,
    )


def _read(size: _Size) -> dict[str, Stream]:
    """Documents: pairs of segments with masked words, and texts with holes."""
    both = Union({"bible": KJV, "news": NEWS})
    pairs = SentencePairs(
        length=128, mlm=Masking(predictions=20), order="both", cut="sentences", field="sentences"
    )
    return {
        "documents": Stream(both, pairs, size.rows(16)),
        "spans": Stream(both, Denoise(length=64, field="sentences"), size.rows(16)),
    }


def _seen(size: _Size) -> dict[str, Stream]:
    """Pictures with captions, and captions with the picture to draw."""
    captions = Captions(length=16, answer_length=16, caption="captions")
    return {
        "captions": Stream(PICTURES, captions, size.rows(64)),
        "drawings": Stream(PICTURES, Drawing(length=20, caption="captions"), size.rows(16)),
    }


def _asked(size: _Size) -> dict[str, Stream]:
    """What is asked in words, about pictures, in dialogues and about clips."""
    questions = Questions(length=20, answer_length=3, per_image=4, absent=0.1)
    dialogues = Questions(length=48, answer_length=3, per_image=3)
    clips = Questions(
        length=20, answer_length=3, per_image=2, absent=0.05, size=32, image="video", frames=FRAMES
    )
    return {
        **mixture(TASKS, size.rows(64)),
        "questions": Stream(PICTURES, questions, size.rows(64, each=4)),
        "dialogues": Stream(DIALOGUES, dialogues, size.rows(48, each=3)),
        "clips": Stream(CLIPS, clips, size.rows(48, each=2)),
    }


_PIXELS = Reconstruct(on="drawings")


def _learned() -> dict:
    """What is learned without a task."""
    return {
        "mlm": MLM(on="documents"),
        "nsp": NSP(on="documents"),
        "sop": SOP(on="documents", weight=0.5),
        "spans": Seq2Seq(on="spans"),
        "itc": ITC(on="captions"),
        "itm": ITM(on="captions", rows=32),
        "caption": Caption(on="captions"),
        "mim": MIM(on="drawings"),
    }


def _model(size: _Size) -> Multimodal:
    """An encoder for each modality, co-attention, a decoder of text and of pictures."""
    width = size.width

    def attention(rope: Rope | None = Rope(), causal: bool = False) -> Attention:
        return Attention(heads=4, kv_heads=4, head_dim=width // 4, rope=rope, causal=causal)

    ffn = SwiGLU(hidden=width * 8 // 3 // 16 * 16)
    block = Block(attention(), ffn)
    # Places on a grid of 8 x 8 patches differ by at most 7: short wavelengths.
    patches = Block(attention(Rope(theta=100.0, split=(0, 1, 1))), ffn)
    writer = Block(attention(causal=True), ffn, cross=attention(rope=None))
    return Multimodal(
        text=TextEncoder(size.vocab, width, Stack((block,), size.layers), types=2),
        vision=VisionEncoder(
            width,
            SpaceTime(Stack((patches,))),
            stem=Convolutions((32, 64)),
            positions=Learned((1, 8, 8)),
            merge=2,
        ),
        # All frames of a place in one token: their products tell where it goes.
        video=VisionEncoder(
            width,
            SpaceTime(Stack((patches,), 2)),
            stem=Patches(8, tubelet=FRAMES),
            positions=Learned((1, 4, 4)),
        ),
        fusion=CoAttention(attention(rope=None), block, layers=1),
        # Where on its grid a word of a picture stands matters as much as what stood before it.
        decoder=Decoder(
            size.vocab, width, Stack((writer,), size.layers), positions=Learned((128,))
        ),
        pairs=ComparedPair(),
        pictures=ImageTokenizer(width, Convolutions((24, 48)), depth=1),
    )
