"""Meshes over real topologies: slices of TPUs, and a pipeline with its kernels inside."""

import dataclasses

import jax
import numpy as np
import pytest
from jax.experimental import topologies
from jax.sharding import NamedSharding

from llama_jax.axes import MESH_AXES, activation_spec, make_mesh, using
from llama_jax.kernels.backends import recording, summary
from llama_jax.objectives import losses
from llama_jax.presets.tiny import tiny_decoder
from llama_jax.train.load import build
from llama_jax.train.state import plan
from llama_jax.train.step import bind, initializer, make_train_step
from tests.aot.topologies import h100, memory


def slices(name: str, count: int):
    return topologies.get_topology_desc(
        platform="tpu", topology_name=name, num_slices=count
    ).devices


@pytest.mark.parametrize(
    ("name", "sizes", "across"),
    [
        ("v6e:4x4", {"data": 2, "fsdp": -1}, "data"),
        ("v5e:4x4", {"data": 1, "stage": 2, "fsdp": -1, "tensor": 4}, "stage"),
        ("v5p:2x2x2", {"data": 1, "fsdp": -1}, "fsdp"),
    ],
)
def test_one_axis_crosses_the_data_centre_network(name, sizes, across):
    mesh = make_mesh(**sizes, devices=slices(name, 2))
    where = np.vectorize(lambda device: device.slice_index, otypes=[int])(mesh.devices)
    for i, axis in enumerate(MESH_AXES):
        assert np.any(np.diff(where, axis=i)) == (axis == across)


TARGETS = {
    "2 x v5e:2x2": (lambda: slices("v5e:2x2", 2), "pallas_tpu"),
    "8 x h100": (lambda: h100(8), "gpu"),
}


@pytest.mark.parametrize("target", TARGETS)
def test_a_pipeline_with_fsdp_and_tensor_compiles_with_the_kernels_of_its_target(target):
    devices, kernel = TARGETS[target]
    run = tiny_decoder()
    text = dataclasses.replace(run.data["text"], batch=16)
    task = dataclasses.replace(text.task, length=512)
    mesh = make_mesh(data=1, stage=2, fsdp=2, tensor=2, devices=devices())
    fields = {"text": dataclasses.replace(text, task=task).fields(None)}  # no words are needed
    with using(mesh, run.rules), recording() as receipts:
        model, total = build(run), losses(run.objectives)
        layout = plan(initializer(model, total, fields), run.optimizer, run.steps, mesh, run.rules)
        step = make_train_step(
            layout, bind(model, total), run.optimizer.rate_at(run.steps), run.objectives
        )
        rows = NamedSharding(mesh, activation_spec("B", run.rules))
        batch = {
            name: {k: jax.ShapeDtypeStruct(*field, sharding=rows) for k, field in stream.items()}
            for name, stream in fields.items()
        }
        compiled = step.lower(layout.abstract, batch).compile()
    print(f"\n{target}: {memory(compiled)}; {summary(receipts)}")
    assert "pipeline: 2 stages x 8 micro-batches, 11 % bubble" in summary(receipts)
    assert kernel in summary(receipts)
    assert "collective-permute" in compiled.as_text()
