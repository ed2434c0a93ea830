"""Questions about clips, and dialogues about pictures: the seed's system on both, from nothing.

seed_clips                              eight frames, as few tokens as an image of its size has
seed_vqa -> seed_dialogue_pictures      or from nothing; turns before a question are text
"""

from llama_jax.config import BPE, Run
from llama_jax.data import Questions, Stream, Tfds
from llama_jax.layers.attention import Attention
from llama_jax.layers.block import Block
from llama_jax.layers.mlp import SwiGLU
from llama_jax.layers.positions import Learned
from llama_jax.layers.rope import Rope
from llama_jax.layers.stack import Stack
from llama_jax.models.coattention import CoAttention
from llama_jax.models.decoder import Decoder
from llama_jax.models.multimodal import Multimodal
from llama_jax.models.stem import Patches
from llama_jax.models.text_encoder import TextEncoder
from llama_jax.models.vision import Factorised, VisionEncoder
from llama_jax.objectives import Seq2Seq
from llama_jax.optim.optimizer import AdamW, Cosine
from llama_jax.presets.seed import seed_vqa

VOCAB = 512  # the clips' texts have some 60 words
FRAMES = 8
CLIPS = Tfds("easy_vqa_clips")
DIALOGUES = Tfds("easy_vqa_dialogues")


def seed_clips() -> Run:
    """Questions about clips of eight frames, from nothing (14 minutes on one CPU core)."""
    asked = Questions(
        length=16, answer_length=3, per_image=3, absent=0.05, image="video", frames=FRAMES
    )
    return Run(
        name="seed_clips",
        model=_model(),
        data={"clips": Stream(CLIPS, asked, batch=96)},
        objectives={"clips": Seq2Seq(on="clips")},
        optimizer=AdamW(
            rate=2e-3, schedule=Cosine(warmup=50, floor=0.02), b2=0.98, weight_decay=0.05
        ),
        tokenizer=BPE(vocab=VOCAB, corpus=(CLIPS,)),
        steps=1200,
        save_every=200,
        log_every=20,
        keep=1,
    )


def seed_dialogue_pictures() -> Run:
    """Dialogues about pictures, from nothing or with --init-from a run of seed_vqa (one core)."""
    asked = Questions(length=48, answer_length=3, per_image=3, absent=0.05)
    return Run(
        name="seed_dialogue_pictures",
        model=seed_vqa().model,
        data={"dialogues": Stream(DIALOGUES, asked, batch=96)},
        objectives={"dialogues": Seq2Seq(on="dialogues")},
        optimizer=AdamW(
            rate=1.5e-3, schedule=Cosine(warmup=50, floor=0.02), b2=0.98, weight_decay=0.05
        ),
        tokenizer=seed_vqa().tokenizer,
        steps=1200,
        save_every=200,
        log_every=20,
        keep=1,
    )


def _model(width: int = 128) -> Multimodal:
    """The seed's system for clips of 64 x 64; four frames are one in time after the stem."""

    def attention(rope: Rope | None = Rope(), causal: bool = False) -> Attention:
        return Attention(heads=4, kv_heads=4, head_dim=width // 4, rope=rope, causal=causal)

    ffn = SwiGLU(hidden=width * 8 // 3 // 16 * 16)
    block = Block(attention(), ffn)
    # A grid of 8 x 8 places and 2 times: short wavelengths.
    places = Block(attention(Rope(theta=100.0, split=(0, 1, 1))), ffn)
    times = Block(attention(Rope(theta=100.0)), ffn)
    writer = Block(attention(causal=True), ffn, cross=attention(rope=None))
    return Multimodal(
        text=TextEncoder(VOCAB, width, Stack((block,))),
        vision=VisionEncoder(
            width,
            Factorised(Stack((places,)), Stack((times,))),
            # Products of what is seen at several times tell where it goes: motion energy
            # (Adelson and Bergen 1985). The feed-forward has them, so the stem joins four frames.
            stem=Patches(16, tubelet=4),
            positions=Learned((FRAMES // 4, 4, 4)),
        ),
        fusion=CoAttention(attention(rope=None), block, layers=1),
        decoder=Decoder(VOCAB, width, Stack((writer,))),
    )
