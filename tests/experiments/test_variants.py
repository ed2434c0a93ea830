"""Every variant of every experiment can be traced, so that none rots unseen."""

import importlib
from pathlib import Path

import jax
import pytest

import experiments
from llama_jax.axes import make_mesh, using
from llama_jax.objectives import losses
from llama_jax.train.load import build
from llama_jax.train.state import plan
from llama_jax.train.step import initializer

FILES = sorted(
    path.stem
    for path in Path(experiments.__file__).parent.glob("*.py")
    if path.stem not in ("__init__", "harness", "steps", "torch_side")  # what experiments share
)
# An experiment that trains nothing has no variants.
CASES = [
    (name, variant)
    for name in FILES
    for variant in getattr(importlib.import_module(f"experiments.{name}"), "variants", dict)()
]


@pytest.mark.parametrize(("name", "variant"), CASES)
def test_a_variant_gives_a_model_that_can_be_traced(name, variant):
    run = importlib.import_module(f"experiments.{name}").variants()[variant]
    mesh = make_mesh(devices=jax.devices()[:1])
    with using(mesh, run.rules):
        fields = {stream: s.fields(None) for stream, s in run.data.items()}
        init = initializer(build(run), losses(run.objectives), fields)
        layout = plan(init, run.optimizer, run.steps, mesh, run.rules)
    assert layout.parameters > 1_000_000


@pytest.mark.parametrize("name", FILES)
def test_an_experiment_says_its_question_and_command(name):
    docstring = importlib.import_module(f"experiments.{name}").__doc__
    assert "?" in docstring.splitlines()[0] and f"python -m experiments.{name}" in docstring
