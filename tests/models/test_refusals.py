"""Configs and calls that cannot work are refused where they are made, in one line."""

import jax
import pytest

from llama_jax.errors import UserError
from llama_jax.layers.attention import Attention
from llama_jax.layers.block import Block
from llama_jax.layers.mlp import MLP, SwiGLU
from llama_jax.layers.stack import Stack
from llama_jax.models.coattention import CoAttention
from llama_jax.models.decoder import Decoder
from llama_jax.models.fusion import Late, Perceiver
from llama_jax.models.heads import AlignHead
from llama_jax.models.stem import Convolutions, Patches
from llama_jax.models.text_encoder import TextEncoder
from llama_jax.models.vision import SpaceTime, VisionEncoder

from .small import BLOCK, FFN, D, V, attention, ids, start

STACK = Stack((BLOCK,))
WRITER = Decoder(V, D, Stack((Block(attention(causal=True), FFN),)))
MADE = {
    "window=0: give 1 or more": lambda: attention(window=0),
    "window=-3: give 1 or more": lambda: attention(causal=True, window=-3),
    "chunk=0: give 1 or more": lambda: attention(chunk=0),
    "heads=0: give 1 or more": lambda: Attention(0, 1, 8),
    "kv_heads=0: give 1 or more": lambda: Attention(2, 0, 8),
    "head_dim=-8: give 1 or more": lambda: Attention(2, 1, -8),
    "heads=3 is not a multiple of kv_heads=2": lambda: Attention(3, 2, 8),
    "head_dim 7 has 3.5 pairs.* multiple of 2$": lambda: Attention(2, 1, 7),
    "hidden=0: give 1 or more": lambda: SwiGLU(0),
    "hidden=-4: give 1 or more": lambda: MLP(-4),
    "repeats=-1: give 1 or more": lambda: Stack((BLOCK,), -1),
    r"pattern=Block\(.* is of type Block; tuple\[Block": lambda: Stack(BLOCK),
    "pattern=3 of Stack is of type int": lambda: Stack(3),
    "vocab=0: give 1 or more": lambda: Decoder(0, D, STACK),
    "width=-16: give 1 or more": lambda: Decoder(V, -D, STACK),
    "context=0: give 1 or more": lambda: Decoder(V, D, STACK, context=0),
    "vocab=-1: give 1 or more": lambda: TextEncoder(-1, D, STACK),
    "width=0: give 1 or more": lambda: VisionEncoder(0, SpaceTime(STACK)),
    "merge=0: give 1 or more": lambda: VisionEncoder(D, SpaceTime(STACK), merge=0),
    "size=0: give 1 or more": lambda: Patches(0),
    "tubelet=0: give 1 or more": lambda: Convolutions(tubelet=0),
    "layers=0: give 1 or more": lambda: CoAttention(attention(), BLOCK, layers=0),
    "latents=0: give 1 or more": lambda: Perceiver(0, STACK, Late()),
    "width=-64: give 1 or more": lambda: AlignHead(-64),
}


@pytest.mark.parametrize("message", MADE)
def test_a_size_that_no_model_can_have_is_refused_when_it_is_given(message):
    with pytest.raises(ValueError, match=f"^{message}") as caught:
        MADE[message]()
    assert "\n" not in str(caught.value)


def test_a_rope_that_is_not_there_asks_nothing_of_the_head_dim():
    assert Attention(2, 1, 7, rope=None).head_dim == 7


@pytest.fixture(scope="module")
def decode():
    """`decode` of a language model and its weights, not compiled."""
    model = WRITER.build()
    variables, _ = start(lambda m, x: m.decode(x)[0], model, ids(2, 3))
    return lambda x, cache: model.apply(variables, x, None, cache, method="decode")


def test_more_tokens_than_the_cache_has_slots_are_refused(decode):
    cache = WRITER.empty_cache(2, 5)
    with pytest.raises(UserError, match=r"^6 tokens .* a cache of 5 slots.* slots=6\), or more"):
        jax.eval_shape(decode, ids(2, 6), cache)
    apart = WRITER.empty_cache(2, 5, apart=True)
    with pytest.raises(UserError, match="^6 tokens do not fit into a cache of 5 slots"):
        jax.eval_shape(decode, ids(2, 6), apart)


def test_a_cache_that_is_nearly_full_says_how_many_slots_are_taken(decode):
    _, cache = decode(ids(2, 4), WRITER.empty_cache(2, 5))
    _, full = decode(ids(2, 1), cache)
    assert full.index == 5
    with pytest.raises(UserError, match=r"^2 tokens .* 5 slots, of which 4 are taken.*slots=6\)"):
        decode(ids(2, 2), cache)
