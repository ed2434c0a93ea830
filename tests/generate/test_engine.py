"""Prefill in chunks and decoding in strides: the whole sequence's numbers, row by row."""

from dataclasses import replace

import jax
import numpy as np
import pytest

from llama_jax.axes import make_mesh
from llama_jax.errors import UserError
from llama_jax.generate.engine import Engine, _advance, _first
from llama_jax.generate.sample import Sampling
from llama_jax.seeds import words
from tests.generate import small

# Logits of order 1 in float32; a cache sums in another order.
TOLERANCE = 1e-5
PROMPTS = [list(range(5, 5 + n)) for n in (3, 33, 160)]  # less than a chunk, more, several


@pytest.fixture(params=[(512, 128, 32), (64, 32)], autouse=True)
def chunks(request, monkeypatch):
    """Also with chunks of which the first is read before there is a cache to look at."""
    monkeypatch.setattr("llama_jax.generate.engine.CHUNKS", request.param)


def drawn(engine, prompts, most=6, **settings):
    rows = engine.rows(len(prompts), 64)
    logits = rows.feed(prompts)
    steps = list(rows.tokens(logits, most, **settings))
    return np.concatenate([s[0] for s in steps], 1), np.concatenate([s[1] for s in steps], 1)


@pytest.fixture(scope="module")
def engine():
    return small.lm().engine


def test_prompts_of_different_lengths_get_the_logits_of_whole_sequences(engine):
    logits = engine.rows(3, 64).feed(PROMPTS)
    for row, prompt in zip(np.asarray(logits), PROMPTS, strict=True):
        alone = np.asarray(engine.logits(np.array([prompt])))[0, -1]
        np.testing.assert_allclose(row, alone, atol=TOLERANCE, rtol=TOLERANCE)


def test_greedy_tokens_and_log_probabilities_are_those_of_whole_sequences(engine):
    ids, logps = drawn(engine, PROMPTS)
    for prompt, new, logp in zip(PROMPTS, ids, logps, strict=True):
        whole = np.array([prompt + new.tolist()])
        expected = np.asarray(engine.logits(whole))[0, len(prompt) - 1 : -1]
        np.testing.assert_array_equal(new, expected.argmax(-1))
        scores = np.asarray(engine.logprobs(whole))[0, len(prompt) - 1 :]
        np.testing.assert_allclose(logp, scores, atol=TOLERANCE)


def test_several_tokens_a_dispatch_are_the_same_tokens(engine):
    one = drawn(engine, PROMPTS, 7, stride=1, sampling=Sampling(temperature=1.0), seed=3)
    many = drawn(engine, PROMPTS, 7, stride=4, sampling=Sampling(temperature=1.0), seed=3)
    np.testing.assert_array_equal(one[0], many[0])
    np.testing.assert_allclose(one[1], many[1], atol=TOLERANCE)


def test_decoding_is_compiled_once(engine):
    before = _advance._cache_size()
    drawn(engine, [PROMPTS[0]] * 5, 6, stride=1)
    drawn(engine, [PROMPTS[0]] * 5, 6, stride=1, seed=1)
    assert _advance._cache_size() <= before + 1


@pytest.mark.parametrize(("temperature", "drawn"), [(0.0, False), (1.0, True)])
def test_only_what_draws_tokens_holds_random_numbers(engine, temperature, drawn):
    rows = engine.rows(1, 64)
    cache = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), rows.cache)
    logits = jax.ShapeDtypeStruct((1, 64), np.float32)
    seen, ends = np.zeros((1, 0), bool), np.array([2], np.int32)
    sampling = Sampling(temperature=temperature)
    first = jax.make_jaxpr(_first)(logits, sampling, words(0), ends, seen, cache)
    assert ("random" in str(first)) == drawn


def test_a_seed_gives_a_row_its_tokens_whatever_stands_beside_it(engine):
    sampling = Sampling(temperature=1.5, top_k=50, top_p=0.9, min_p=0.01)
    together = drawn(engine, [PROMPTS[0], PROMPTS[1]], 8, sampling=sampling, seed=5)[0]
    alone = drawn(engine, [PROMPTS[0]], 8, sampling=sampling, seed=5)[0]
    np.testing.assert_array_equal(together[0], alone[0])
    other = drawn(engine, [PROMPTS[0]], 8, sampling=sampling, seed=6)[0]
    assert (other != alone).any()


def test_a_row_that_ends_is_followed_by_zeros_and_stops_the_loop_with_the_last(engine):
    free = drawn(engine, PROMPTS[:2], 8)[0]
    end = int(free[0, 2])
    ids, logps = drawn(engine, PROMPTS[:2], 8, ends=[end], stride=1)
    first = [list(row).index(end) if end in row else len(row) for row in free]
    assert ids.shape[1] == min(8, max(first) + 1)
    np.testing.assert_array_equal(ids[0, first[0] + 1 :], 0)
    np.testing.assert_array_equal(logps[0, first[0] + 1 :], 0)


def test_a_cache_grows_when_it_is_full(engine):
    rows = engine.rows(1, 32)
    slots = rows.cache.slots
    rows.feed([PROMPTS[2][:100]])
    logits = rows.feed([PROMPTS[2][100:]])
    assert rows.cache.slots > slots
    whole = np.asarray(engine.logits(np.array([PROMPTS[2]])))[0, -1]
    np.testing.assert_allclose(np.asarray(logits)[0], whole, atol=TOLERANCE, rtol=TOLERANCE)


def test_rewinding_keeps_what_two_prompts_have_in_common(engine):
    rows = engine.rows(1, 64)
    rows.feed([PROMPTS[1]])
    other = [*PROMPTS[1][:20], 200, 201, 202]
    assert rows.rewind(other) == 20
    logits = rows.feed([other[20:]])
    whole = np.asarray(engine.logits(np.array([other])))[0, -1]
    np.testing.assert_allclose(np.asarray(logits)[0], whole, atol=TOLERANCE, rtol=TOLERANCE)


def test_the_context_is_a_limit_and_a_prompt_has_tokens(engine):
    with pytest.raises(UserError, match="more than the model's context of 200"):
        engine.rows(1, 64).feed([[1] * (small.CONTEXT + 60)])
    with pytest.raises(UserError, match="without tokens"):
        engine.rows(2, 64).feed([[1], []])


def test_a_penalty_lowers_what_a_row_holds(engine):
    free = drawn(engine, [PROMPTS[0]], 12)[0][0]
    assert len(set(free.tolist())) < 12  # a small greedy model repeats itself
    held = drawn(
        engine,
        [PROMPTS[0]],
        12,
        sampling=Sampling(repetition_penalty=50.0),
        held=[PROMPTS[0]],
    )[0][0]
    assert len({*held.tolist(), *PROMPTS[0]}) == 12 + len(PROMPTS[0])


@pytest.mark.parametrize("axes", [{"tensor": 2}, {"data": 2, "tensor": 2}])
def test_a_mesh_generates_what_one_device_does(engine, axes):
    count = int(np.prod(list(axes.values())))
    mesh = make_mesh(**({"data": 1} | axes), devices=jax.devices()[:count])
    params = jax.device_put(small.params(), jax.sharding.NamedSharding(mesh, jax.P()))
    split = Engine(engine.module, params, mesh)
    rows = split.rows(2, 64)
    keys = jax.tree.leaves(rows.cache.layers)[0]
    assert keys.sharding.shard_shape(keys.shape)[1] == keys.shape[1] // 2
    ids, logps = drawn(split, PROMPTS[:2])
    expected = drawn(engine, PROMPTS[:2])
    np.testing.assert_array_equal(ids, expected[0])
    np.testing.assert_allclose(logps, expected[1], atol=TOLERANCE)


@pytest.fixture(scope="module", params=["window", "chunk"])
def near(request):
    """A model of which one layer of two sees 150 positions at most."""
    block = small.STACK.pattern[0]
    other = replace(block, attention=replace(block.attention, **{request.param: 150}))
    stack = replace(small.STACK, pattern=(block, other), repeats=1)
    module = replace(small.MODEL, stack=stack, context=400).build()
    made = module.init(jax.random.key(0), np.zeros((1, 1), np.int32))
    return Engine(module, jax.tree.map(lambda b: b.value, made["params"], is_leaf=_boxed))


def _boxed(x):
    return hasattr(x, "letters")


def test_layers_of_a_window_or_chunk_keep_it_and_no_more(near):
    """Two rows, with padding between two turns; the cache grows from all slots to a ring."""
    prompts = [np.arange(n) * 7 % 290 + 5 for n in (230, 190)]
    rows = near.rows(2, 64)
    rows.feed([prompts[0][:100].tolist(), prompts[1][:33].tolist()])
    assert [one.own.k.shape[2] for one in rows.cache.layers] == [128, 128]
    logits = rows.feed([prompts[0][100:].tolist(), prompts[1][33:].tolist()])
    assert [one.own.k.shape[2] for one in rows.cache.layers][1] == 150
    steps = list(rows.tokens(logits, 4, stride=2))
    ids, logps = (np.concatenate(parts, 1) for parts in zip(*steps, strict=True))
    for prompt, new, logp in zip(prompts, ids, logps, strict=True):
        whole = np.array([[*prompt.tolist(), *new.tolist()]])
        expected = np.asarray(near.logprobs(whole))[0, len(prompt) - 1 :]
        np.testing.assert_allclose(logp, expected, atol=TOLERANCE)
        greedy = np.asarray(near.logits(whole))[0, len(prompt) - 1 : -1].argmax(-1)
        np.testing.assert_array_equal(new, greedy)


def test_rewinding_starts_anew_where_a_window_has_forgotten(near):
    prompt = (np.arange(200) * 7 % 290 + 5).tolist()
    rows = near.rows(1, 256)
    rows.feed([prompt])
    assert rows.rewind([*prompt, 5]) == 200  # nothing is taken back
    other = [*prompt[:190], 3, 4]
    kept = rows.rewind(other)
    assert kept == 0
    logits = rows.feed([other[kept:]])
    whole = np.asarray(near.logits(np.array([other])))[0, -1]
    np.testing.assert_allclose(np.asarray(logits)[0], whole, atol=TOLERANCE, rtol=TOLERANCE)
    again = [*other[:120], 9]
    short = near.rows(1, 256)
    short.feed([other[:140]])
    assert short.rewind(again) == 120  # it has not gone round yet
    logits = short.feed([again[120:]])
    whole = np.asarray(near.logits(np.array([again])))[0, -1]
    np.testing.assert_allclose(np.asarray(logits)[0], whole, atol=TOLERANCE, rtol=TOLERANCE)
