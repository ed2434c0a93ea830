"""Beam search against transformers': the T5 of test_models, the same texts and scores."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from llama_jax.generate.beam import Beam, search  # noqa: E402
from tests.parity.test_models import seeded, t5  # noqa: E402

TOLERANCE = 1e-5  # as of the models' logits: of sums of them times 81, for a penalty of -2, a share
MAX, EARLY = 9, {"likely": False, "full": True, "never": "never"}

__all__ = ["seeded"]


@pytest.fixture(scope="module")
def both():
    torch.manual_seed(0)
    theirs, ours, params = t5()
    ids = np.random.default_rng(2).integers(1, 61, (4, 9))
    model, variables = ours.build(), {"params": params}
    return (
        theirs,
        ids,
        model,
        variables,
        model.apply(variables, jnp.asarray(ids), method="encode_text"),
    )


def generated(theirs, ids, beam, eos):
    """transformers' texts, without the first token, and their scores, [B,N,...]."""
    out = theirs.generate(
        torch.tensor(ids), max_new_tokens=MAX, do_sample=False, num_beams=beam.width,
        length_penalty=beam.length_penalty, early_stopping=EARLY[beam.ends], eos_token_id=eos,
        pad_token_id=0, num_return_sequences=beam.best, return_dict_in_generate=True,
        output_scores=True,
    )  # fmt: skip
    rows = len(ids)
    scores = out.sequences_scores.numpy().reshape(rows, -1)
    return out.sequences.numpy()[:, 1:].reshape(rows, beam.best, -1), scores


def same(mine, theirs, eos):
    """Whether texts agree up to their ends: transformers fills up with eos where padding is 0."""
    return [[cut(t, eos) for t in row] for row in np.asarray(mine).tolist()] == [
        [cut(t, eos) for t in row] for row in theirs.tolist()
    ]


def cut(text, eos):
    return text[: text.index(eos) + 1] if eos in text else text


@pytest.mark.parametrize(
    ("beam", "eos"),  # 10 ends two of the four rows soon, 54 another, 40 some beams, 1 none
    [
        (Beam(2, 1.0, best=2), 54),
        (Beam(3, 0.0, best=2), 10),
        (Beam(3, 0.0, "full", best=3), 54),
        (Beam(4, 1.0, "full", best=4), 10),
        (Beam(4, 2.0, "never", best=4), 10),
        (Beam(4, 2.0, best=4), 1),
        (Beam(5, -1.0, "never", best=4), 40),
        (Beam(5, -2.0, best=5), 10),
    ],
    ids=repr,
)
def test_texts_and_scores_are_those_that_t5_generates(both, beam, eos):
    theirs, ids, *ours = both
    texts, scores = generated(theirs, ids, beam, eos)
    found = search(*ours, beam, bos=0, eos=eos, max_new=MAX)
    np.testing.assert_allclose(found.scores, scores, atol=TOLERANCE, rtol=TOLERANCE)
    assert same(found.ids, texts, eos)


def test_a_search_that_ends_early_finds_what_t5_generates(both):
    theirs, ids, model, variables, memory = both
    beam, one = Beam(2, 1.0, "full", best=2), jax.tree.map(lambda a: a[1:2], memory)
    texts, scores = generated(theirs, ids[1:2], beam, 10)
    assert texts.shape[2] < MAX, texts
    found = search(model, variables, one, beam, bos=0, eos=10, max_new=MAX)
    np.testing.assert_allclose(found.scores, scores, atol=TOLERANCE, rtol=TOLERANCE)
    assert same(found.ids, texts, 10)
