"""Small runs: a first look, a smoke test, a starting point of one's own."""

from llama_jax.config import BPE, Run
from llama_jax.data import LanguageModel, Stream, Tfds
from llama_jax.layers.attention import Attention
from llama_jax.layers.block import Block
from llama_jax.layers.mlp import SwiGLU
from llama_jax.layers.stack import Stack
from llama_jax.models.decoder import Decoder
from llama_jax.objectives import CausalLM
from llama_jax.optim.optimizer import AdamW, Cosine


def tiny_decoder() -> Run:
    """A causal language model of two LLaMA layers on the King James text (a minute on a CPU)."""
    attention = Attention(heads=4, kv_heads=2, head_dim=32, causal=True)
    block = Block(attention, SwiGLU(hidden=336))
    return Run(
        name="tiny_decoder",
        model=Decoder(vocab=1024, width=128, stack=Stack((block,), repeats=2)),
        data={"text": Stream(Tfds("kjv"), LanguageModel(length=128), batch=8)},
        objectives={"lm": CausalLM(on="text")},
        optimizer=AdamW(rate=3e-3, schedule=Cosine(warmup=20)),
        tokenizer=BPE(vocab=1024),
        steps=300,
        save_every=100,
        log_every=10,
    )


def decoder_25m() -> Run:
    """A causal language model of 25M parameters for rows of 512 tokens (an hour on a CPU)."""
    attention = Attention(heads=6, kv_heads=6, head_dim=64, causal=True)
    stack = Stack((Block(attention, SwiGLU(hidden=1024)),), repeats=10)
    return Run(
        name="decoder_25m",
        model=Decoder(vocab=16384, width=384, stack=stack, context=512),
        data={"text": Stream(Tfds("kjv"), LanguageModel(length=512), batch=4)},
        objectives={"lm": CausalLM(on="text")},
        optimizer=AdamW(rate=1e-3, schedule=Cosine(warmup=100)),
        tokenizer=BPE(vocab=16384),
        steps=1000,
    )
