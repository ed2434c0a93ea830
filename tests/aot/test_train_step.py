"""The whole multimodal train step, pre-training and fine-tuning, compiled for devices not here."""

import jax
import pytest
from jax.sharding import NamedSharding

from llama_jax import presets
from llama_jax.axes import activation_spec, make_mesh, using
from llama_jax.objectives import losses
from llama_jax.train.load import build
from llama_jax.train.state import plan
from llama_jax.train.step import bind, initializer, make_train_step
from tests.aot.topologies import h100, memory, tpu

MESHES = {
    "v5e:2x2": (lambda: tpu("v5e:2x2"), {"fsdp": 2, "tensor": 2}),
    "h100": (lambda: h100(1), {}),
}


@pytest.mark.parametrize("target", MESHES)
@pytest.mark.parametrize("preset", ["seed_demo", "seed_vqa"])
def test_the_train_step_compiles_and_its_memory_is_known(preset, target):
    devices, sizes = MESHES[target]
    run = presets.get(preset)
    mesh = make_mesh(**sizes, devices=devices())
    with using(mesh, run.rules):
        model, total = build(run), losses(run.objectives)
        fields = {name: stream.fields(None) for name, stream in run.data.items()}
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
    print(f"\n{preset} on {target}: {memory(compiled)}")
    stats = compiled.memory_analysis()
    assert stats.alias_size_in_bytes > 0.9 * stats.output_size_in_bytes  # the old state is reused
    # Weights and two moments in float32, split where the letters split them.
    whole = 3 * 4 * layout.parameters
    assert whole / mesh.size < stats.argument_size_in_bytes < 1.3 * whole
