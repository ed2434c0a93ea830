"""Greedy and sampled decoding: ends, padding, log-probabilities, the choice of tokens."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from llama_jax.errors import UserError
from llama_jax.generate.decode import decode, greedy
from llama_jax.generate.sample import Sampling
from llama_jax.layers.stack import Stack
from llama_jax.models.decoder import Decoder
from llama_jax.models.fusion import Late
from llama_jax.models.multimodal import Multimodal
from llama_jax.models.text_encoder import TextEncoder
from tests.models.small import BLOCK, WRITER, D, V, ids, start


@pytest.fixture(scope="module")
def writer():
    decoder = Decoder(V, D, Stack((WRITER,)), tied=False)
    config = Multimodal(TextEncoder(V, D, Stack((BLOCK,))), Late(), decoder=decoder, norm=None)
    model = config.build()
    variables, _ = start(lambda m, s, t: m.decode(t, m.encode_text(s))[0], model, ids(), ids())
    encode = jax.jit(lambda: model.apply(variables, ids(), method="encode_text"))
    return model, variables, encode()


def by_hand(model, variables, memory, steps):
    """Greedy decoding without a cache: the whole sequence again for every token."""
    run = jax.jit(lambda tokens: model.apply(variables, tokens, memory, method="decode")[0])
    tokens, logprobs = np.zeros((4, steps + 1), np.int32), np.zeros((4, steps))
    tokens[:, 0] = 1
    for t in range(steps):  # what comes later is not seen
        logp = np.asarray(jax.nn.log_softmax(run(tokens)[:, t]))
        tokens[:, t + 1] = logp.argmax(-1)
        logprobs[:, t] = logp.max(-1)
    return tokens[:, 1:], logprobs


def test_greedy_decoding_equals_decoding_without_a_cache(writer):
    found = greedy(*writer, bos=1, eos=-1, max_new=5)
    expected, logprobs = by_hand(*writer, 5)
    np.testing.assert_array_equal(found.ids, expected)
    np.testing.assert_allclose(found.logprobs, logprobs, atol=1e-5)


def test_a_row_ends_with_its_end_token_and_is_padded(writer):
    expected = np.asarray(by_hand(*writer, 5)[0])
    end = int(expected[0, 2])
    found = greedy(*writer, bos=1, eos=end, max_new=5)
    for row, wanted in zip(np.asarray(found.ids), expected, strict=True):
        stop = np.flatnonzero(wanted == end)
        length = stop[0] + 1 if len(stop) else 5
        np.testing.assert_array_equal(row[:length], wanted[:length])
        np.testing.assert_array_equal(row[length:], 0)
    np.testing.assert_array_equal(np.asarray(found.logprobs)[np.asarray(found.ids) == 0], 0)


def test_the_same_key_samples_the_same_tokens_and_another_others(writer):
    model, variables, memory = writer
    prompt = jnp.ones((4, 1), jnp.int32)

    def sample(seed):
        return decode(
            model, variables, memory, prompt, eos=-1, max_new=6,
            sampling=Sampling(temperature=1.0), key=jax.random.key(seed),
        ).ids  # fmt: skip

    np.testing.assert_array_equal(sample(0), sample(0))
    assert (np.asarray(sample(0)) != np.asarray(sample(1))).any()


def many(sampling, logits, count=4000):
    rows = jnp.broadcast_to(jnp.log(jnp.asarray(logits)), (count, len(logits)))
    return np.bincount(sampling(rows, jax.random.key(0)), minlength=len(logits)) / count


def test_temperature_sharpens_the_distribution():
    probs = np.array([0.5, 0.3, 0.2])
    # 4,000 samples: three deviations are 0.024.
    np.testing.assert_allclose(many(Sampling(temperature=1.0), probs), probs, atol=0.025)
    cold = probs**2 / (probs**2).sum()
    np.testing.assert_allclose(many(Sampling(temperature=0.5), probs), cold, atol=0.025)


def test_top_k_keeps_the_most_probable():
    found = many(Sampling(temperature=1.0, top_k=2), [0.5, 0.3, 0.2])
    np.testing.assert_allclose(found, [0.625, 0.375, 0.0], atol=0.025)


@pytest.mark.parametrize(("top_p", "kept"), [(0.4, 1), (0.6, 2), (0.9, 3), (1.0, 4)])
def test_top_p_keeps_the_smallest_set_with_that_much_probability(top_p, kept):
    found = many(Sampling(temperature=1.0, top_p=top_p), [0.5, 0.3, 0.15, 0.05])
    assert np.flatnonzero(found).tolist() == list(range(kept))


@pytest.mark.parametrize(
    "fields", [{"temperature": -1.0}, {"temperature": float("nan")}, {"top_k": -1}, {"top_p": 0.0}]
)
def test_values_out_of_range_are_refused(fields):
    with pytest.raises(ValueError, match=next(iter(fields))):
        Sampling(**fields)


@pytest.mark.parametrize(
    ("prompts", "most", "text"), [([[1]], 0, "max_new=0"), ([[1, 2], [1]], 2, "several lengths")]
)
def test_what_cannot_be_decoded_is_named(writer, prompts, most, text):
    model, variables, memory = writer
    with pytest.raises(UserError, match=text):
        decode(model, variables, memory, prompts, eos=2, max_new=most)
