"""The first steps of a Run on any devices: what tests of meshes and of processes compare.

found = first_steps(run, 20, jax.devices()[:4])
found.losses                      # 20 floats
found.params["decoder/embed/w"]   # after the last of them
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

from llama_jax.axes import using
from llama_jax.config import Run
from llama_jax.data.loader import Loader
from llama_jax.objectives.base import losses
from llama_jax.train.load import build
from llama_jax.train.rows import check_rows, put
from llama_jax.train.state import plan
from llama_jax.train.step import bind, initializer, make_train_step
from llama_jax.trees import flat


@dataclass(frozen=True)
class Steps:
    """What some steps of training left behind.

    Attributes:
      losses: before each step.
      weights: after the last, on the devices, by path name.
    """

    losses: list[float]
    weights: dict[str, jax.Array]

    @property
    def params(self) -> dict[str, np.ndarray]:
        """The weights on this machine, where all of their devices are."""
        return {name: np.asarray(weight) for name, weight in self.weights.items()}


def first_steps(run: Run, steps: int, devices: Sequence[Any] | None = None) -> Steps:
    """Trains without a run directory, with the functions that the loop calls in its order.

    Args:
      run: its mesh is laid over the devices; every process calls this with the same.
      steps: how many; the schedule is that of the run.
      devices: all by default, those of other processes too.
    """
    tokenizer = run.tokenizer.build([stream.source for stream in run.data.values()])
    loader = Loader(run.data, tokenizer, run.seed, jax.process_index(), jax.process_count())
    fields = {name: stream.fields(tokenizer) for name, stream in run.data.items()}
    mesh, total = run.mesh.build(devices), losses(run.objectives)
    with using(mesh, run.rules):
        check_rows(fields, mesh, run.rules)
        model = build(run)
        init = initializer(model, total, fields)
        layout = plan(init, run.optimizer, run.steps, mesh, run.rules)
        step = make_train_step(
            layout,
            bind(model, total),
            run.optimizer.rate_at(run.steps),
            run.objectives,
            run.accumulate,
        )
        state, found = layout.init(run.seed), []
        for number in range(steps):
            state, metrics = step(state, put(loader.batch(number), mesh, run.rules))
            found.append(metrics["loss"])
    loader.close()
    return Steps([float(loss) for loss in found], flat(state.params))
