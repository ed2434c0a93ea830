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

# What makes words of pictures is a model of its own, and has 0.2M parameters.
LEAST = {"drawing": 100_000}

TRACED: dict[str, int] = {}


@pytest.mark.parametrize(("name", "variant"), CASES)
def test_a_variant_gives_a_model_that_can_be_traced(name, variant):
    run = importlib.import_module(f"experiments.{name}").variants()[variant]
    fields = {stream: s.fields(None) for stream, s in run.data.items()}
    assert parameters(run, fields) > LEAST.get(name, 1_000_000)


def parameters(run, fields):
    """Traced once for variants that differ in name, data of the same shapes, or start alone."""
    of_model = {k: v for k, v in vars(run).items() if k not in ("name", "data", "init_from")}
    key = repr((of_model, fields))
    if key not in TRACED:
        mesh = make_mesh(devices=jax.devices()[:1])
        with using(mesh, run.rules):
            init = initializer(build(run), losses(run.objectives), fields)
            TRACED[key] = plan(init, run.optimizer, run.steps, mesh, run.rules).parameters
    return TRACED[key]


@pytest.mark.parametrize("name", FILES)
def test_an_experiment_says_its_question_and_command(name):
    docstring = importlib.import_module(f"experiments.{name}").__doc__
    assert "?" in docstring.splitlines()[0] and f"python -m experiments.{name}" in docstring
