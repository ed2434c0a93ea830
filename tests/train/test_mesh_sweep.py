"""Every mesh by name on two and four devices, and a run of text and pictures: minutes."""

import dataclasses

import jax
import pytest

from llama_jax.config import edit
from llama_jax.presets.meshes import LAYOUTS
from tests.demo import small
from tests.train.steps import first_steps
from tests.train.test_meshes import EPS, STEPS, alone, decoder_run, on_mesh, same

__all__ = ["alone"]  # the fixture
pytestmark = pytest.mark.meshes


@pytest.mark.parametrize("devices", [2, 4])
@pytest.mark.parametrize("name", LAYOUTS)
def test_some_devices_learn_what_one_does(text, alone, name, devices):
    run = on_mesh(decoder_run(text), name)
    same(first_steps(run, STEPS, jax.devices()[:devices]), alone)


def pictures_and_text():
    """Encoders for both, fusion and a decoder that answers questions."""
    run = small.finetune()
    run = dataclasses.replace(run, optimizer=dataclasses.replace(run.optimizer, eps=EPS))
    return edit(run, "steps", STEPS)


@pytest.fixture(scope="module")
def multimodal_alone():
    return first_steps(pictures_and_text(), STEPS, jax.devices()[:1])


@pytest.mark.parametrize(
    ("name", "devices"),
    [("data", 8), ("fsdp", 4), ("fsdp_tensor", 4), ("tensor", 2)],
)
def test_many_devices_learn_the_same_of_pictures_and_text(multimodal_alone, name, devices):
    run = on_mesh(pictures_and_text(), name)
    same(first_steps(run, STEPS, jax.devices()[:devices]), multimodal_alone)
