"""The seed's system on easy-VQA pictures and the King James text: pre-train, then answer questions.

seed_demo -> seed_vqa              minutes on two CPU cores; what `llama-jax demo` runs
seed_full -> seed_full_vqa         the same with more of everything
"""

from llama_jax.config import BPE, Run
from llama_jax.data import Captions, Masking, Questions, SentencePairs, Stream, Tfds
from llama_jax.layers.attention import Attention
from llama_jax.layers.block import Block
from llama_jax.layers.mlp import SwiGLU
from llama_jax.layers.positions import Learned
from llama_jax.layers.rope import Rope
from llama_jax.layers.stack import Stack
from llama_jax.models.coattention import CoAttention
from llama_jax.models.decoder import Decoder
from llama_jax.models.multimodal import Multimodal
from llama_jax.models.pair_heads import ComparedPair
from llama_jax.models.stem import Convolutions
from llama_jax.models.text_encoder import TextEncoder
from llama_jax.models.vision import SpaceTime, VisionEncoder
from llama_jax.objectives import ITC, ITM, MLM, NSP, Caption, Seq2Seq
from llama_jax.optim.optimizer import AdamW, Cosine

VOCAB = 2048
KJV = Tfds("kjv")
PICTURES = Tfds("easy_vqa")
GROUNDED = Stream(
    PICTURES,
    Captions(length=16, mlm=Masking(rate=0.3, predictions=4), caption="captions"),
    batch=32,
)
# The same for pre-training and fine-tuning, so that either can start a run.
TOKENIZER = BPE(vocab=VOCAB, corpus=(KJV, PICTURES))


def seed_demo() -> Run:
    """Pre-train the seed's system: MLM, NSP, alignment, captions (minutes on a CPU)."""
    return Run(
        name="seed_demo",
        model=_model(text=2, vision=1),
        data=_pretraining(documents=32, captions=128),
        objectives=_objectives(match=64),
        optimizer=AdamW(rate=1.5e-3, schedule=Cosine(warmup=50), b2=0.98, weight_decay=0.05),
        tokenizer=TOKENIZER,
        steps=500,
        save_every=500,
        log_every=20,
        keep=1,
    )


def seed_vqa() -> Run:
    """Fine-tune seed_demo on questions about pictures; give --init-from (minutes on a CPU)."""
    return Run(
        name="seed_vqa",
        model=seed_demo().model,
        data={"questions": _questions(batch=128)},
        objectives={"vqa": Seq2Seq(on="questions")},
        optimizer=AdamW(
            rate=1.5e-3, schedule=Cosine(warmup=50, floor=0.02), b2=0.98, weight_decay=0.05
        ),
        tokenizer=TOKENIZER,
        steps=600,
        save_every=600,
        log_every=20,
        keep=1,
    )


def seed_full() -> Run:
    """Pre-train a deeper one for longer, with image-grounded MLM (46 minutes on one core)."""
    return Run(
        name="seed_full",
        model=_model(text=3, vision=2),
        data=_pretraining(documents=64, captions=128) | {"grounded": GROUNDED},
        objectives=_objectives(match=64) | {"grounded_mlm": MLM(on="grounded", source="fused")},
        optimizer=AdamW(rate=1.5e-3, schedule=Cosine(warmup=100), b2=0.98, weight_decay=0.05),
        tokenizer=TOKENIZER,
        steps=1500,
        save_every=200,
        log_every=20,
    )


def seed_full_vqa() -> Run:
    """Fine-tune seed_full on questions about pictures; give --init-from (27 minutes, one core)."""
    return Run(
        name="seed_full_vqa",
        model=seed_full().model,
        data={"questions": _questions(batch=256)},
        objectives={"vqa": Seq2Seq(on="questions")},
        optimizer=AdamW(
            rate=1e-3, schedule=Cosine(warmup=100, floor=0.02), b2=0.98, weight_decay=0.05
        ),
        tokenizer=TOKENIZER,
        steps=1500,
        save_every=200,
        log_every=20,
    )


def _model(text: int, vision: int, width: int = 128) -> Multimodal:
    """The seed's system for pictures of 64 x 64; `text` and `vision` are layers."""

    def attention(rope: Rope | None = Rope(), causal: bool = False) -> Attention:
        return Attention(heads=4, kv_heads=4, head_dim=width // 4, rope=rope, causal=causal)

    ffn = SwiGLU(hidden=width * 8 // 3 // 16 * 16)
    block = Block(attention(), ffn)
    # Places on a grid of 8 x 8 patches differ by at most 7: short wavelengths.
    patches = Block(attention(Rope(theta=100.0, split=(0, 1, 1))), ffn)
    writer = Block(attention(causal=True), ffn, cross=attention(rope=None))
    return Multimodal(
        text=TextEncoder(VOCAB, width, Stack((block,), text), types=2),
        vision=VisionEncoder(
            width,
            SpaceTime(Stack((patches,), vision)),
            stem=Convolutions((32, 64)),
            positions=Learned((1, 8, 8)),
            merge=2,
        ),
        fusion=CoAttention(attention(rope=None), block, layers=1),
        decoder=Decoder(VOCAB, width, Stack((writer,))),
        pairs=ComparedPair(),
    )


def _pretraining(documents: int, captions: int) -> dict[str, Stream]:
    """Pairs of sentences with masked tokens, and pictures with captions; the numbers are rows."""
    return {
        "documents": Stream(KJV, SentencePairs(length=64, mlm=Masking(predictions=10)), documents),
        "captions": Stream(
            PICTURES, Captions(length=16, answer_length=12, caption="captions"), captions
        ),
    }


def _questions(batch: int) -> Stream:
    return Stream(PICTURES, Questions(length=16, answer_length=3, per_image=4, absent=0.1), batch)


def _objectives(match: int) -> dict:
    return {
        "mlm": MLM(on="documents"),
        "nsp": NSP(on="documents"),
        "itc": ITC(on="captions"),
        "itm": ITM(on="captions", rows=match),
        "caption": Caption(on="captions"),
    }
