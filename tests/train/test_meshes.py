"""One run, whatever it is laid out on: the same losses and weights under every mesh by name.

Here on eight devices; `test_mesh_sweep.py` has two and four, and a multimodal run.
"""

import dataclasses

import jax
import numpy as np
import pytest

from llama_jax.config import BPE, Run, edit
from llama_jax.errors import UserError
from llama_jax.layers.attention import Attention
from llama_jax.layers.block import Block
from llama_jax.layers.mlp import SwiGLU
from llama_jax.layers.stack import Stack
from llama_jax.models.decoder import Decoder
from llama_jax.presets.meshes import LAYOUTS, laid_out
from tests.train.steps import Steps, first_steps
from tests.train.tiny import text_run

STEPS = 20
# Losses of order 1 to 6, weights of order 1, in float32.
TOLERANCE = 1e-5
# Adam divides a gradient by its own size, so that one which is 0 but for rounding (1e-8 here) would
# take a step of full length in a direction of chance; an eps above the rounding keeps it at rest.
EPS = 1e-5


def decoder_run(text) -> Run:
    """All sizes are multiples of eight, for any axis may have so many devices."""
    block = Block(Attention(8, 8, 4, causal=True), SwiGLU(32))
    model = Decoder(304, 32, Stack((block,), repeats=4))
    run = text_run(text, model=model, tokenizer=BPE(304), steps=STEPS)
    return edit(edit(run, "optimizer.rate", 1e-3), "optimizer.eps", EPS)


def on_mesh(run: Run, name: str, **sizes: int) -> Run:
    """The run on a mesh by name, with some sizes changed."""
    run = laid_out(run, name)
    return dataclasses.replace(run, mesh=dataclasses.replace(run.mesh, **sizes))


def same(found: Steps, expected: Steps) -> None:
    np.testing.assert_allclose(found.losses, expected.losses, rtol=0, atol=TOLERANCE)
    mine, theirs = found.params, expected.params
    assert mine.keys() == theirs.keys()
    for name, weight in mine.items():
        np.testing.assert_allclose(weight, theirs[name], rtol=0, atol=TOLERANCE, err_msg=name)


@pytest.fixture(scope="module")
def alone(text) -> Steps:
    """The run on one device."""
    found = first_steps(decoder_run(text), STEPS, jax.devices()[:1])
    assert found.losses[-1] < found.losses[0] - 1  # it learns, so equal is not equally idle
    return found


MIXED = [
    ("pipeline", {"data": 1, "stage": 2, "fsdp": 2, "tensor": 2}),
    ("pipeline", {"data": 1, "stage": 4, "context": 2}),
]


@pytest.mark.meshes
@pytest.mark.parametrize(("name", "sizes"), [*((name, {}) for name in LAYOUTS), *MIXED])
def test_eight_devices_learn_what_one_does(text, alone, name, sizes):
    same(first_steps(on_mesh(decoder_run(text), name, **sizes), STEPS), alone)


def test_weights_and_moments_of_a_pipeline_are_split_over_its_stages(text):
    run = on_mesh(decoder_run(text), "pipeline", data=1, stage=4)
    found = first_steps(run, 0, jax.devices()[:4]).weights
    stack = [weight for name, weight in found.items() if "/layers/" in name]
    assert stack and all(w.addressable_shards[0].data.shape[0] == 1 for w in stack)


@pytest.mark.parametrize(
    ("name", "path", "value", "words"),
    [
        ("fsdp", "data.text.batch", 12, "axis B: stream 'text' has 12 rows .* multiple of 8"),
        ("tensor", "model.vocab", 300, r"axis V \(vocab\) of length 300"),
        ("context", "data.text.task.length", 12, r"axis T \(query length\) of length 12"),
        ("pipeline", "model.stack.repeats", 3, "axis L: a stack of 3 periods"),
        ("pipeline", "rules.microbatches", 3, "3 micro-batches are not a multiple of the 2"),
        ("pipeline", "mesh.stage", 3, "stage=3, data=-1 needs a multiple of 3 devices, 8"),
    ],
)
def test_what_does_not_divide_is_refused_by_its_letter(text, name, path, value, words):
    run = edit(on_mesh(decoder_run(text), name), path, value)
    with pytest.raises(UserError, match=words):
        first_steps(run, 1)
