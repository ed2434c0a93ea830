"""Cached decoding equals uncached, step by step, for every kind of decoder."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from llama_jax.layers.block import Block, Gated, Merged
from llama_jax.layers.positions import Learned, RelativeBias
from llama_jax.layers.stack import Stack
from llama_jax.models.decoder import Decoder
from llama_jax.models.fusion import Late
from llama_jax.models.multimodal import Multimodal
from llama_jax.models.text_encoder import TextEncoder

from .small import BLOCK, FFN, WRITER, D, V, attention, ids, start

# The figure, for logits of order 1.
TOLERANCE = 1e-5

OWN = attention(causal=True)
T = 7


def encoder_decoder(block, **fields):
    encoder = TextEncoder(V, D, Stack((BLOCK,)))
    decoder = Decoder(V, D, Stack((block,), 2), **fields)
    return Multimodal(encoder, Late(), decoder=decoder, norm=None)


DECODERS = {
    "cross": encoder_decoder(WRITER),
    "gated cross": encoder_decoder(Block(OWN, FFN, cross=Gated(attention(rope=None), 0.7))),
    "merged": encoder_decoder(Block(OWN, FFN, cross=Merged())),
    "post-norm": encoder_decoder(Block(OWN, FFN, cross=attention(rope=None), post_norm=True)),
    "learned positions": encoder_decoder(WRITER, positions=Learned((T,))),
    "window": encoder_decoder(Block(attention(causal=True, window=3), FFN)),
    "chunk": encoder_decoder(Block(attention(causal=True, chunk=3), FFN)),
}


def whole(model, source, valid, target):
    return model.decode(target, model.encode_text(source, valid))[0]


@pytest.mark.parametrize("name", DECODERS)
def test_an_encoder_decoder_gives_the_same_logits_token_by_token(name):
    config = DECODERS[name]
    model = config.build()
    source, target = ids(3, 5), ids(3, T, seed=4)
    valid = jnp.arange(5)[None] < jnp.array([[5], [2], [4]])
    variables, run = start(whole, model, source, valid, target)
    expected = run(variables, source, valid, target)
    memory = model.apply(variables, source, valid, method="encode_text")
    step = jax.jit(
        lambda tokens, cache: model.apply(variables, tokens, None, cache, method="decode")
    )
    cache = config.empty_cache(3, T + 2)
    first = jax.jit(lambda *args: model.apply(variables, *args, method="decode"))
    logits, cache = first(target[:, :2], memory, cache)
    found = [logits]
    for t in range(2, T):
        logits, cache = step(target[:, t : t + 1], cache)
        found.append(logits)
    np.testing.assert_allclose(jnp.concatenate(found, axis=1), expected, atol=TOLERANCE)
    assert cache.index == T


def test_t5_bias_is_cached_too():
    block = Block(attention(rope=None, causal=True, scale=1.0), FFN)
    bias = RelativeBias(2, buckets=6, distance=8, causal=True)
    config = Decoder(V, D, Stack((block,), 2, bias=bias))
    model, tokens = config.build(), ids(2, T)
    variables, run = start(lambda m, x: m.decode(x)[0], model, tokens)
    expected = run(variables, tokens)
    step = jax.jit(lambda *args: model.apply(variables, args[0], None, args[1], method="decode"))
    cache, found = config.empty_cache(2, T), []
    for t in range(T):
        logits, cache = step(tokens[:, t : t + 1], cache)
        found.append(logits)
    np.testing.assert_allclose(jnp.concatenate(found, axis=1), expected, atol=TOLERANCE)


def test_a_left_padded_prompt_continues_as_if_it_had_no_padding():
    config = Decoder(V, D, Stack((Block(OWN, FFN),), 2))
    model, tokens = config.build(), ids(1, 4)
    variables, run = start(lambda m, x: m.decode(x)[0], model, tokens)
    expected = run(variables, tokens)[:, -1]
    padded = jnp.pad(tokens, ((0, 0), (3, 0)))
    places = jnp.maximum(jnp.arange(7)[None] - 3, 0)
    logits, _ = model.apply(
        variables, padded, None, config.empty_cache(1, 9), places,
        valid_BT=jnp.arange(7)[None] >= 3, method="decode",
    )  # fmt: skip
    np.testing.assert_allclose(logits[:, -1], expected, atol=TOLERANCE)


def test_packed_documents_are_read_as_if_each_stood_alone():
    config = Decoder(V, D, Stack((Block(OWN, FFN),), 2))
    model, tokens = config.build(), ids(1, 6)
    variables, run = start(lambda m, *a: m.decode(a[0], None, None, *a[1:])[0], model, tokens)
    segments = jnp.array([[1, 1, 1, 2, 2, 2]])
    packed = run(variables, tokens, jnp.array([[0, 1, 2, 0, 1, 2]]), segments)
    for part in (slice(0, 3), slice(3, 6)):
        alone = run(variables, tokens[:, part])
        np.testing.assert_allclose(packed[:, part], alone, atol=TOLERANCE)


def test_remat_changes_memory_and_not_gradients():
    def total(m, x):
        return jnp.sum(m.decode(x)[0] ** 2)

    tokens, grads = ids(2, 5), {}
    for kind in ("none", "block", "dots"):
        model = Decoder(V, D, Stack((Block(OWN, FFN),), 2, remat=kind)).build()
        variables, run = start(total, model, tokens)
        grads[kind] = jax.jit(jax.grad(run))(variables, tokens)
    for kind in ("block", "dots"):
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4),
            grads["none"],
            grads[kind],
        )


def test_a_scan_over_layers_has_one_body_in_the_program():
    model = Decoder(V, D, Stack((Block(OWN, FFN),), 12)).build()
    variables, run = start(lambda m, x: m.decode(x)[0], model, ids(1, 3))
    assert str(jax.make_jaxpr(run)(variables, ids(1, 3))).count("scan[") == 1


def test_encoder_and_decoder_of_other_sizes_are_refused():
    with pytest.raises(ValueError, match="must be equal"):
        decoder = Decoder(V + 1, D, Stack((WRITER,)))
        Multimodal(TextEncoder(V, D, Stack((BLOCK,))), Late(), decoder=decoder)


@pytest.mark.parametrize("tied", [True, False])
def test_a_loss_reads_what_becomes_the_logits(tied):
    model = Decoder(V, D, Stack((Block(OWN, FFN),)), tied=tied).build()
    variables, _ = start(lambda m, x: m.decode(x)[0], model, ids(2, T))
    logits, _ = model.apply(variables, ids(2, T), method="decode")
    readout = model.apply(variables, ids(2, T), method="readout")
    assert readout.x.shape == (2, T, D)
    np.testing.assert_allclose(readout.logits, logits, atol=TOLERANCE)
