"""A run's train step on its own, for what measures steps: no data, no files, no checkpoints."""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import jax
from jax.sharding import Mesh

from llama_jax.axes import make_mesh, using
from llama_jax.config import Run
from llama_jax.objectives import losses
from llama_jax.text.vocabulary import Vocabulary
from llama_jax.train.flops import of_step
from llama_jax.train.load import build
from llama_jax.train.state import Plan, plan
from llama_jax.train.step import bind, initializer, make_train_step


@dataclass(frozen=True)
class Steps:
    """What `llama_jax.train.train` makes of a run, on one device.

    Attributes:
      layout: of the state; `layout.init(seed)` makes the first.
      step: (state, batch) -> (state, metrics), jitted.
      fields: (shape, dtype) of every field of a batch, by stream and name.
      flops: model FLOPs of a step, or None.
      mesh: of one device.
    """

    layout: Plan
    step: Any
    fields: dict[str, Any]
    flops: float | None
    mesh: Mesh


@contextlib.contextmanager
def steps_of(run: Run, words: Vocabulary | None = None) -> Iterator[Steps]:
    """Makes them; to be used within the context, which sets the mesh and the rules.

    Args:
      run: whose step it is.
      words: the tokenizer, for streams whose fields depend on it.
    """
    mesh = make_mesh(devices=jax.devices()[:1])
    with using(mesh, run.rules):
        model, total = build(run), losses(run.objectives)
        fields: dict[str, Any] = {name: one.fields(words) for name, one in run.data.items()}
        init, loss = initializer(model, total, fields), bind(model, total)
        layout = plan(init, run.optimizer, run.steps, mesh, run.rules, run.ema is not None)
        rate = run.optimizer.rate_at(run.steps)
        step = make_train_step(layout, loss, rate, run.objectives, run.accumulate, run.ema)
        yield Steps(layout, step, fields, of_step(layout.abstract.params, loss, fields), mesh)
