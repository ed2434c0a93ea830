"""Training against torch: transformers' Llama and torch's AdamW see the same batches.

Packed rows, which transformers keeps apart by positions that begin anew; clipping; decay of
matrices alone; a rate that rises and falls.
"""

import dataclasses

import jax
import numpy as np
import pytest

from llama_jax.config import edit
from llama_jax.data import Loader
from llama_jax.optim.optimizer import Cosine

pytest.importorskip("torch")

from experiments.steps import steps_of  # noqa: E402
from experiments.torch_side import TorchRun  # noqa: E402
from llama_jax.train.rows import put  # noqa: E402
from llama_jax.weights.huggingface_write import write_huggingface  # noqa: E402
from tests.train.test_meshes import decoder_run  # noqa: E402

STEPS = 20
# Losses from 6 to 3 in float32.
TOLERANCE = 1e-5


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    text = tmp_path_factory.mktemp("text") / "text.txt"
    rng = np.random.default_rng(0)
    words = [" ".join(rng.choice(["sea", "land", "lamb", "and"], 40)) for _ in range(60)]
    text.write_text("\n\n".join(words))
    run = edit(decoder_run(text), "model.context", 64)
    optimizer = dataclasses.replace(run.optimizer, rate=3e-3, schedule=Cosine(warmup=5))
    return dataclasses.replace(run, optimizer=optimizer, steps=STEPS)


def test_twenty_steps_have_the_losses_of_torch(run, tmp_path):
    words = run.tokenizer.build([stream.source for stream in run.data.values()])
    loader = Loader(run.data, words, run.seed)
    batches = [loader.batch(step) for step in range(STEPS)]
    loader.close()
    assert any(batch["text"]["segments"].max() > 1 for batch in batches)
    ours = []
    with steps_of(run, words) as made:
        state = made.layout.init(run.seed)
        write_huggingface(tmp_path / "weights", run.model, state.params)
        for batch in batches:
            state, metrics = made.step(state, put(batch, made.mesh, run.rules))
            ours.append(metrics)
    theirs = TorchRun(run, tmp_path / "weights", threads=1)
    found = [theirs.step(batch["text"]) for batch in batches]
    ours = jax.device_get(ours)
    assert max(step["grad_norm"] for step in ours) > run.optimizer.clip  # it was clipped
    assert ours[-1]["loss"] < ours[0]["loss"] - 1
    np.testing.assert_allclose(found, [step["loss"] for step in ours], rtol=0, atol=TOLERANCE)
