"""A conversation about pictures among the words answers each turn as if all were read anew."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from llama_jax.data.marks import Marks
from llama_jax.generate.conversation import Conversation
from llama_jax.generate.engine import Engine
from llama_jax.generate.lm import LM
from llama_jax.layers.attention import Attention
from llama_jax.layers.block import Block
from llama_jax.layers.linear import Lettered
from llama_jax.layers.mlp import SwiGLU
from llama_jax.layers.stack import Stack
from llama_jax.models.early_vision import EarlyVision
from llama_jax.text.messages import Picture
from tests.generate import small
from tests.models import early

VOCAB = small.VOCAB + 6
MARKS = Marks(*range(small.VOCAB, VOCAB))


class Bare:
    """One turn after another, a control token before each."""

    def ids(self, messages, tokenizer, generation_prompt, tools=None):
        ids: list[int] = []
        for message in messages:
            ids.append(tokenizer.control[f"<|{message.role}|>"])
            for piece in message.pieces:
                seen = isinstance(piece, Picture)
                ids += [MARKS.picture] if seen else tokenizer.encode(piece)
        return [*ids, tokenizer.control["<|assistant|>"]] if generation_prompt else ids


def made(chunk):
    """A model whose layers attend within chunks, and whose cache then forgets what is older."""
    block = Block(Attention(2, 1, 8, causal=True, chunk=chunk), SwiGLU(24))
    own = early.config()
    stack = Stack((block,), 2, scan=False)
    decoder = dataclasses.replace(own.decoder, vocab=VOCAB, stack=stack)
    module = EarlyVision(decoder, own.vision, MARKS).build()
    given = jnp.zeros((1, 4), jnp.int32), jnp.zeros((1, 1, 16, 16, 3)), jnp.zeros((1, 4), jnp.int32)
    params = jax.tree.map(
        lambda box: box.value,
        jax.jit(module.init)(jax.random.key(0), *given)["params"],
        is_leaf=lambda x: isinstance(x, Lettered),
    )
    return LM(Engine(module, params), small.tokenizer(), "early", Bare())


def test_every_turn_answers_as_if_all_were_read_anew():
    lm = made(chunk=16)
    talk = Conversation(lm)
    rng = np.random.default_rng(0)
    for text, count in (("the sky", 1), ("is", 0), ("blue", 1)):
        images = [rng.integers(0, 256, (16, 32, 3), np.uint8) for _ in range(count)]
        answer = "".join(talk.say(text, 4, images))
        assert answer == lm.chat(talk.messages[:-1], max_new_tokens=4)
