"""A small random language model with a tokenizer, in memory and as a folder."""

import functools
import json
import pathlib
import tempfile

import jax
import jax.numpy as jnp

from llama_jax.generate.engine import Engine
from llama_jax.generate.lm import LM
from llama_jax.layers.attention import Attention
from llama_jax.layers.block import Block
from llama_jax.layers.mlp import SwiGLU
from llama_jax.layers.stack import Stack
from llama_jax.models.decoder import Decoder
from llama_jax.text.pretrained import open_tokenizer

CONTEXT = 200
VOCAB = 300
CONTROL = {"<s>": 296, "</s>": 297, "<|user|>": 298, "<|assistant|>": 299}
TEMPLATE = (
    "<s>{% for m in messages %}<|{{ m.role }}|>{{ m.content }}</s>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
WORDS = "the sky is blue and the sea is deep; once upon a time there was a little king " * 20
STACK = Stack((Block(Attention(4, 2, 8, causal=True), SwiGLU(48)),), repeats=2, scan=False)
MODEL = Decoder(VOCAB, 32, STACK, tied=True, context=CONTEXT)


@functools.cache
def params():
    init = functools.partial(MODEL.build().init, method="decode")
    made = jax.jit(init)(jax.random.key(1), jnp.zeros((1, 1), jnp.int32))
    return jax.tree.map(lambda b: b.value, made["params"], is_leaf=lambda x: hasattr(x, "letters"))


@functools.cache
def tokenizer_json() -> bytes:
    """Bytes, some merges, four control tokens."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=296,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    made.train_from_iterator([WORDS], trainer)
    assert made.get_vocab_size() == 296
    made.add_special_tokens(list(CONTROL))
    return made.to_str().encode()


def config() -> dict:
    names = {"bos_token": "<s>", "eos_token": "</s>"}
    return names | {"chat_template": TEMPLATE, "add_bos_token": True}


@functools.cache
def tokenizer():
    with tempfile.TemporaryDirectory() as place:
        for name, content in files().items():
            (pathlib.Path(place) / name).write_bytes(content)
        return open_tokenizer(place)


def files() -> dict[str, bytes]:
    return {
        "tokenizer.json": tokenizer_json(),
        "tokenizer_config.json": json.dumps(config()).encode(),
    }


def lm() -> LM:
    """Fresh around shared weights; programs are shared too."""
    return LM(Engine(MODEL.build(), params()), tokenizer(), "small")


def folder(place):
    """The same on disk."""
    from llama_jax.weights.huggingface_write import write_huggingface

    write_huggingface(place, MODEL, params(), files(), "float32")
    return place
