"""One preset a task, for those who need just one: encoder and decoder, small enough for a CPU.

Each is `llama-jax train seed_translate --run-dir runs/translate`, then `llama-jax ask`.
"""

from llama_jax.config import BPE, Run
from llama_jax.layers.attention import Attention
from llama_jax.layers.block import Block
from llama_jax.layers.mlp import SwiGLU
from llama_jax.layers.rope import Rope
from llama_jax.layers.stack import Stack
from llama_jax.models.decoder import Decoder
from llama_jax.models.fusion import Late
from llama_jax.models.multimodal import Multimodal
from llama_jax.models.text_encoder import TextEncoder
from llama_jax.objectives import Seq2Seq
from llama_jax.optim.optimizer import AdamW, Cosine
from llama_jax.tasks.mixtures import corpus, mixture


def seed_numbers() -> Run:
    """Translate numbers in words, English to four languages (minutes on a CPU)."""
    return _run("seed_numbers", ("number_words",), vocab=640, batch=64, steps=1500)


def seed_translate() -> Run:
    """Translate numbers in words and texts of programs, English to four languages."""
    names = ("number_words", "interface_texts")
    return _run("seed_translate", names, vocab=2048, batch=64, steps=10_000)


def seed_summarise() -> Run:
    """Write the headline of an English news article."""
    return _run("seed_summarise", ("headlines",), vocab=4096, batch=16, steps=3000)


def seed_topics() -> Run:
    """Say the topic of an English news article, as text."""
    return _run("seed_topics", ("topics",), vocab=4096, batch=16, steps=500)


def seed_sentiment() -> Run:
    """Say whether a Chinese review is positive or negative, as text."""
    return _run("seed_sentiment", ("sentiment",), vocab=4096, batch=32, steps=2000)


def seed_arithmetic() -> Run:
    """Answer questions of arithmetic, about numbers and comparisons."""
    return _run("seed_arithmetic", ("mathematics",), vocab=1024, batch=64, steps=20_000)


def seed_replies() -> Run:
    """Reply to what is said, in English and Chinese."""
    return _run("seed_replies", ("replies",), vocab=2048, batch=32, steps=2000)


def _run(name: str, tasks: tuple[str, ...], vocab: int, batch: int, steps: int) -> Run:
    """A run of some tasks; the tokenizer is trained on their texts."""
    streams = mixture(tasks, batch)
    return Run(
        name=name,
        model=_model(vocab),
        data=streams,
        objectives={stream: Seq2Seq(on=stream) for stream in streams},
        optimizer=AdamW(
            rate=2e-3, schedule=Cosine(warmup=100, floor=0.02), b2=0.98, weight_decay=0.05
        ),
        tokenizer=BPE(vocab, corpus(tasks), digits="single"),
        steps=steps,
        save_every=500,
        log_every=50,
    )


def _model(vocab: int, width: int = 128, layers: int = 3) -> Multimodal:
    """An encoder and a decoder of so many layers each, without eyes."""

    def attention(rope: Rope | None = Rope(), causal: bool = False) -> Attention:
        return Attention(heads=4, kv_heads=4, head_dim=width // 4, rope=rope, causal=causal)

    ffn = SwiGLU(hidden=width * 8 // 3 // 16 * 16)
    reader = Block(attention(), ffn)
    writer = Block(attention(causal=True), ffn, cross=attention(rope=None))
    return Multimodal(
        text=TextEncoder(vocab, width, Stack((reader,), layers)),
        fusion=Late(),
        decoder=Decoder(vocab, width, Stack((writer,), layers)),
    )
