"""Text to picture by words: first what makes words of easy-VQA pictures, then who writes them.

seed_image_tokenizer -> seed_draw
"""

from llama_jax.config import BPE, Run
from llama_jax.data import Drawing, Pixels, Stream, Tfds
from llama_jax.layers.attention import Attention
from llama_jax.layers.block import Block
from llama_jax.layers.mlp import SwiGLU
from llama_jax.layers.positions import Learned
from llama_jax.layers.rope import Rope
from llama_jax.layers.stack import Stack
from llama_jax.models.coattention import CoAttention
from llama_jax.models.decoder import Decoder
from llama_jax.models.fsq import FSQ
from llama_jax.models.image_tokenizer import ImageTokenizer
from llama_jax.models.multimodal import Multimodal
from llama_jax.models.stem import Convolutions
from llama_jax.models.text_encoder import TextEncoder
from llama_jax.objectives import Draw, Reconstruct
from llama_jax.optim.optimizer import AdamW, Cosine

VOCAB = 400
PICTURES = Tfds("easy_vqa")
TOKENIZER = BPE(vocab=VOCAB, corpus=(PICTURES,))
# After 700 short steps (experiments/drawing.py) 24.2 dB and 81 % of colours, where the paper's
# numbers of 8, 5, 5 and 5 levels had 22.0 dB and 52 %, and ten of two 20.8 dB and 29 %.
WORDS = FSQ((4, 4, 4, 4, 4))


def seed_image_tokenizer() -> Run:
    """Train what makes words of pictures, for seed_draw (minutes on a CPU)."""
    return Run(
        name="seed_image_tokenizer",
        model=drawer(),
        data={"pictures": Stream(PICTURES, Pixels(), batch=16)},
        objectives={"reconstruct": Reconstruct(on="pictures")},
        optimizer=AdamW(
            rate=2e-3, schedule=Cosine(warmup=50, floor=0.02), b2=0.98, weight_decay=0.01
        ),
        tokenizer=TOKENIZER,
        steps=5000,
        save_every=500,
        log_every=20,
        keep=1,
    )


def seed_draw() -> Run:
    """Draw pictures from captions; give --init-from a run of seed_image_tokenizer."""
    return Run(
        name="seed_draw",
        model=drawer(),
        data={"drawings": Stream(PICTURES, Drawing(length=16, caption="captions"), batch=32)},
        objectives={"draw": Draw(on="drawings")},
        optimizer=AdamW(
            rate=2e-3,
            schedule=Cosine(warmup=50, floor=0.02),
            b2=0.98,
            weight_decay=0.05,
            groups=(("pictures/*", 0.0),),
        ),
        tokenizer=TOKENIZER,
        steps=2000,
        save_every=500,
        log_every=20,
        keep=1,
    )


def drawer(width: int = 128) -> Multimodal:
    """A reader of captions and a writer of 8 x 8 words, each 8 x 8 pixels."""

    def attention(rope: Rope | None = Rope(), causal: bool = False) -> Attention:
        return Attention(heads=4, kv_heads=4, head_dim=width // 4, rope=rope, causal=causal)

    ffn = SwiGLU(hidden=width * 8 // 3 // 16 * 16)
    block = Block(attention(), ffn)
    writer = Block(attention(causal=True), ffn, cross=attention(rope=None))
    return Multimodal(
        text=TextEncoder(VOCAB, width, Stack((block,), 1)),
        fusion=CoAttention(attention(rope=None), block, layers=1),
        # Where on the grid a word stands matters as much as which words stood before it.
        decoder=Decoder(VOCAB, width, Stack((writer,), 2), positions=Learned((64,))),
        pictures=ImageTokenizer(width, Convolutions((24, 48)), WORDS, depth=1),
    )
