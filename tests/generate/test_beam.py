"""Beam search against a slow twin without a cache, and against all texts that there are."""

import itertools

import jax
import numpy as np
import pytest

from llama_jax.errors import UserError
from llama_jax.generate.beam import Beam, search
from llama_jax.generate.decode import greedy
from llama_jax.layers.stack import Stack
from llama_jax.models.decoder import Decoder
from llama_jax.models.fusion import Late
from llama_jax.models.multimodal import Multimodal
from llama_jax.models.text_encoder import TextEncoder
from tests.models.small import BLOCK, WRITER, D, ids, start

TOLERANCE = 1e-5  # sums of a few log-probabilities in float32
WORDS, ROWS, BOS, EOS, NONE = 6, 3, 1, 2, -1


@pytest.fixture(scope="module")
def writer():
    decoder = Decoder(WORDS, D, Stack((WRITER,), repeats=2), tied=False)
    config = Multimodal(TextEncoder(WORDS, D, Stack((BLOCK,))), Late(), decoder=decoder, norm=None)
    model = config.build()
    source, tokens = ids(ROWS) % WORDS, np.zeros((ROWS, 1), np.int32)
    variables, _ = start(lambda m, s, t: m.decode(t, m.encode_text(s))[0], model, source, tokens)
    variables = jax.tree.map(lambda w: 3 * w, variables)  # words far enough apart
    memory = jax.jit(lambda: model.apply(variables, source, method="encode_text"))()
    return model, variables, memory


@pytest.fixture(scope="module")
def next_logp(writer):
    """The log-probabilities of what follows a text, by row; a text is run whole and once."""
    model, variables, memory = writer
    run = jax.jit(lambda tokens: model.apply(variables, tokens, memory, method="decode")[0])
    known = {}

    def of(row, text):
        if text not in known:
            tokens = np.full((ROWS, 8), BOS, np.int32)
            tokens[:, 1 : len(text) + 1] = text
            known[text] = np.asarray(jax.nn.log_softmax(run(tokens)[:, len(text)]))
        return known[text][row]

    return of


def slowly(next_logp, row, beam, max_new):
    """The rules of transformers on lists of (sum, text)."""
    beams, ended = [(0.0, ())], []
    for step in range(1, max_new + 1):
        longer = [
            (total + float(logp), (*text, word))
            for total, text in beams
            for word, logp in enumerate(next_logp(row, text))
        ]
        longer = sorted(longer, reverse=True)[: 2 * beam.width]
        ends = [text[-1] == EOS or step == max_new for _, text in longer]
        new = [
            (total / len(text) ** beam.length_penalty, text)
            for (total, text), end in list(zip(longer, ends, strict=True))[: beam.width]
            if end
        ]
        ended = sorted(ended + new, reverse=True)[: beam.width]
        beams = [one for one, end in zip(longer, ends, strict=True) if not end][: beam.width]
        if len(ended) == beam.width and beams:
            far = max_new if beam.ends == "never" and beam.length_penalty > 0 else step
            if beam.ends == "full" or beams[0][0] / far**beam.length_penalty <= ended[-1][0]:
                break
    return ended[: beam.best]


@pytest.mark.parametrize(
    "beam",
    [
        Beam(1, 1.0),
        Beam(2, -1.5, best=2),
        Beam(3, 0.0, "full", best=3),
        Beam(3, 1.0, best=3),
        Beam(3, 1.0, "full", best=3),
        Beam(3, 1.0, "never", best=3),
        Beam(6, 2.0, "never", best=6),
    ],
    ids=repr,
)
def test_it_finds_what_the_slow_twin_finds(writer, next_logp, beam):
    found = search(*writer, beam, bos=BOS, eos=EOS, max_new=5, pad=NONE)
    for row in range(ROWS):
        expected = slowly(next_logp, row, beam, 5)
        texts = [list(text) + [NONE] * (5 - len(text)) for _, text in expected]
        np.testing.assert_array_equal(found.ids[row, : len(texts)], texts)
        scores = [score for score, _ in expected]
        np.testing.assert_allclose(found.scores[row, : len(texts)], scores, atol=TOLERANCE)


def test_with_as_many_beams_as_words_it_finds_the_best_of_all_short_texts(writer, next_logp):
    beam = Beam(WORDS, 0.0, "never", best=WORDS)
    found = search(*writer, beam, bos=BOS, eos=EOS, max_new=2, pad=NONE)
    pairs = itertools.product([w for w in range(WORDS) if w != EOS], range(WORDS))
    texts = [(EOS,), *pairs]
    for row in range(ROWS):
        totals = {
            text: sum(float(next_logp(row, text[:i])[word]) for i, word in enumerate(text))
            for text in texts
        }
        best = sorted(texts, key=lambda text: -totals[text])[:WORDS]
        written = [tuple(text[text != NONE].tolist()) for text in np.asarray(found.ids[row])]
        assert written == best
        np.testing.assert_allclose(found.scores[row], [totals[t] for t in best], atol=TOLERANCE)


def test_one_beam_is_greedy_decoding(writer):
    found = search(*writer, Beam(1), bos=BOS, eos=EOS, max_new=6)
    expected = greedy(*writer, bos=BOS, eos=EOS, max_new=6)
    np.testing.assert_array_equal(found.ids[:, 0], expected.ids)
    lengths = np.maximum((np.asarray(expected.logprobs) < 0).sum(axis=1), 1)
    logp = np.asarray(expected.logprobs).sum(axis=1) / lengths
    np.testing.assert_allclose(found.scores[:, 0], logp, atol=TOLERANCE)


def test_a_row_finds_the_same_alone_as_among_others(writer):
    model, variables, memory = writer
    together = search(*writer, Beam(3, best=3), bos=BOS, eos=EOS, max_new=5)
    one = jax.tree.map(lambda a: a[1:2], memory)
    alone = search(model, variables, one, Beam(3, best=3), bos=BOS, eos=EOS, max_new=5)
    np.testing.assert_array_equal(alone.ids[0], together.ids[1])
    np.testing.assert_allclose(alone.scores[0], together.scores[1], atol=TOLERANCE)


def test_more_beams_than_words_are_refused(writer):
    with pytest.raises(UserError, match="width=7.*6 words"):
        search(*writer, Beam(7), bos=BOS, eos=EOS, max_new=2)


@pytest.mark.parametrize(
    ("fields", "said"),
    [({"width": 0}, "width=0"), ({"best": 5}, "best=5"), ({"ends": "soon"}, "ends='soon'")],
)
def test_values_out_of_range_are_refused(fields, said):
    with pytest.raises(UserError, match=said):
        Beam(**fields)


def test_no_token_to_make_is_refused(writer):
    with pytest.raises(UserError, match="max_new=0"):
        search(*writer, Beam(2), bos=BOS, eos=EOS, max_new=0)
