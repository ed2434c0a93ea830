"""Questions about clips, and dialogues about pictures: the seed's system on each, from nothing.

Both see 16 tokens, so that text costs more than sight.
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
from llama_jax.models.stem import Convolutions, Patches
from llama_jax.models.text_encoder import TextEncoder
from llama_jax.models.vision import SpaceTime, VisionEncoder
from llama_jax.objectives import Seq2Seq
from llama_jax.optim.optimizer import AdamW, Cosine

VOCAB = 512  # the clips' texts have some 60 words
FRAMES = 8
CLIPS = Tfds("easy_vqa_clips")
DIALOGUES = Tfds("easy_vqa_dialogues")


def seed_clips() -> Run:
    """Questions about clips of eight frames, from nothing (17 minutes on a shared CPU core)."""
    asked = Questions(
        length=16,
        answer_length=3,
        per_image=2,
        absent=0.05,
        size=32,
        image="video",
        frames=FRAMES,
    )
    # Products of what is seen at several times tell where it goes: motion energy (Adelson and
    # Bergen 1985). Feed-forwards have them, so the stem joins all frames of a place.
    stem = Patches(8, tubelet=FRAMES)
    return _run("seed_clips", _model(stem, text=1), "clips", Stream(CLIPS, asked, 128), steps=600)


def seed_dialogue_pictures() -> Run:
    """Dialogues about pictures, from nothing (not trained to its end yet)."""
    asked = Questions(length=40, answer_length=3, per_image=3, absent=0.05)
    # Edges and corners tell circles from rectangles, in few steps.
    stem = Convolutions((16, 32, 64))
    stream = Stream(DIALOGUES, asked, 96)
    return _run("seed_dialogue_pictures", _model(stem, text=2), "dialogues", stream, steps=900)


def _run(name: str, model: Multimodal, on: str, stream: Stream, steps: int) -> Run:
    return Run(
        name=name,
        model=model,
        data={on: stream},
        objectives={on: Seq2Seq(on=on)},
        optimizer=AdamW(
            rate=2e-3, schedule=Cosine(warmup=50, floor=0.02), b2=0.98, weight_decay=0.05
        ),
        tokenizer=BPE(vocab=VOCAB, corpus=(stream.source,)),
        steps=steps,
        save_every=200,
        log_every=20,
        keep=1,
    )


def _model(stem: Patches | Convolutions, text: int, width: int = 96) -> Multimodal:
    """The seed's system for pictures or clips that become 16 tokens; `text` is layers."""

    def attention(rope: Rope | None = Rope(), causal: bool = False) -> Attention:
        return Attention(heads=4, kv_heads=4, head_dim=width // 4, rope=rope, causal=causal)

    ffn = SwiGLU(hidden=width * 8 // 3 // 16 * 16)
    block = Block(attention(), ffn)
    # A grid of 4 x 4 places: short wavelengths.
    places = Block(attention(Rope(theta=100.0, split=(0, 1, 1))), ffn)
    writer = Block(attention(causal=True), ffn, cross=attention(rope=None))
    return Multimodal(
        text=TextEncoder(VOCAB, width, Stack((block,), text)),
        vision=VisionEncoder(
            width, SpaceTime(Stack((places,), 2)), stem=stem, positions=Learned((1, 4, 4))
        ),
        fusion=CoAttention(attention(rope=None), block, layers=1),
        decoder=Decoder(VOCAB, width, Stack((writer,))),
    )
