"""Cached decoding equals uncached, step by step, for every kind of decoder."""

from dataclasses import replace

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


# A layer of every kind of cache.
MIXED = Decoder(
    V,
    D,
    Stack((Block(OWN, FFN), Block(attention(causal=True, window=3), FFN),
           Block(attention(causal=True, chunk=4), FFN))),
)  # fmt: skip


@pytest.mark.parametrize("scan", [True, False])
def test_a_layer_keeps_no_more_than_its_window_or_chunk_and_padding_takes_no_room(scan):
    """Prompts of two lengths in pieces, with padding between them, then token by token."""
    config = replace(MIXED, stack=replace(MIXED.stack, scan=scan))
    model, tokens = config.build(), ids(2, 14)
    variables, run = start(lambda m, x: m.decode(x)[0], model, tokens)
    expected = run(variables, tokens)
    cache = config.empty_cache(2, 32)
    assert [one.own.k.shape[-2] for one in cache.layers] == [32, 3, 4]
    extend = jax.jit(lambda *args: model.apply(variables, *args, method="extend"))
    at = np.zeros(2, int)  # tokens read so far
    for takes, width in (((5, 3), 6), ((2, 6), 6), ((1, 1), 1), ((1, 1), 1), ((3, 1), 6)):
        piece, valid = np.zeros((2, width), int), np.zeros((2, width), bool)
        for row, count in enumerate(takes):
            piece[row, width - count :] = tokens[row, at[row] : at[row] + count]
            valid[row, width - count :] = True
        at += takes
        logits, cache = extend(piece, cache, valid)
        for row in range(2):
            np.testing.assert_allclose(logits[row], expected[row, at[row] - 1], atol=TOLERANCE)


def test_rows_that_join_and_leave_a_batch_are_as_each_alone():
    model, slots = MIXED.build(), 16
    prompts = [np.asarray(ids(1, n, seed=n)) for n in (5, 2, 7)]
    variables, _ = start(lambda m, x: m.decode(x)[0], model, prompts[0])
    extend = jax.jit(lambda *args: model.apply(variables, *args, method="extend"))

    def begun(prompt):
        """A row's cache after its prompt, with padding before it, and its first token."""
        padded = np.pad(prompt, ((0, 0), (8 - prompt.shape[1], 0)))
        valid = np.arange(8)[None] >= 8 - prompt.shape[1]
        logits, cache = extend(padded, MIXED.empty_cache(1, slots), valid)
        return cache, jax.nn.log_softmax(logits[0])

    def alone(prompt, steps):
        cache, logp = begun(prompt)
        for _ in range(steps):
            yield int(logp.argmax()), float(logp.max())
            logits, cache = extend(np.array([[logp.argmax()]]), cache, np.ones((1, 1), bool))
            logp = jax.nn.log_softmax(logits[0])

    cache = MIXED.empty_cache(2, slots, apart=True)
    insert = jax.jit(lambda cache, row, other: cache.insert(row, other))
    place, found, last = {}, {n: [] for n in range(3)}, np.zeros((2, 1), int)
    # Who sits in which row before each step; the first leaves and the last takes its place.
    plan = [{0: 1}, {0: 1}, {0: 1, 1: 0}, {1: 0}, {1: 0, 2: 1}, {1: 0, 2: 1}, {2: 1}, {2: 1}]
    for now in plan:
        for who in set(place) - set(now):
            cache = cache.free(place[who])
        for who in set(now) - set(place):
            other, logp = begun(prompts[who])
            cache = insert(cache, now[who], other)
            last[now[who]] = logp.argmax()
            found[who].append((int(logp.argmax()), float(logp.max())))
        place = now
        here = np.array([[row in now.values()] for row in range(2)])
        logits, cache = extend(last, cache, here)
        for who, row in now.items():
            logp = jax.nn.log_softmax(logits[row])
            last[row] = logp.argmax()
            found[who].append((int(logp.argmax()), float(logp.max())))
    for who, steps in found.items():
        expected = list(alone(prompts[who], len(steps)))
        assert [token for token, _ in steps] == [token for token, _ in expected]
        scores = ([logp for _, logp in of] for of in (steps, expected))
        np.testing.assert_allclose(*scores, atol=TOLERANCE)


def test_a_cache_of_rows_in_step_takes_no_other_row():
    with pytest.raises(ValueError, match="apart=True"):
        MIXED.empty_cache(2, 8).insert(0, MIXED.empty_cache(1, 8))


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
