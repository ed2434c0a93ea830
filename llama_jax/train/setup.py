"""All that a run needs before its first step: made, checked and agreed on, in this order."""

import contextlib
import functools
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import flax.linen as nn
from jax.sharding import Mesh

from llama_jax.axes import using
from llama_jax.config import Run, as_now, run_as_now, to_json
from llama_jax.data.loader import Loader, Past, merged
from llama_jax.errors import UserError
from llama_jax.objectives.base import losses
from llama_jax.text.files import open_for_training
from llama_jax.text.vocabulary import Vocabulary
from llama_jax.train.best import Best
from llama_jax.train.checkpoint import Checkpoints
from llama_jax.train.continued import continued, said
from llama_jax.train.fits import check_context
from llama_jax.train.flops import of_step
from llama_jax.train.held_out import HeldOut
from llama_jax.train.init_from import Start
from llama_jax.train.load import build
from llama_jax.train.processes import agree, code, exchange, on_first, together
from llama_jax.train.rows import check_rows, share
from llama_jax.train.rundir import RunDir
from llama_jax.train.state import Plan, TrainState, plan
from llama_jax.train.step import Bound, bind, initializer
from llama_jax.train.throughput import Machine
from llama_jax.weights.orbax import saved_steps


@dataclass(frozen=True)
class Setup:
    """What the steps of a run are made of.

    Attributes:
      run: the run.
      tokenizer: the one in the run directory.
      mesh: the devices.
      loader: what reads this process's rows.
      reached: what the loader had reached at the checkpoint that the run goes on from, or None.
      part: the part of a batch's rows that this process reads, of how many.
      fields: (shape, dtype) of every field of a batch, by stream and name.
      model: the unbound module.
      loss: a function of parameters, batch and key.
      layout: shapes and shardings of the state.
      checkpoints: what the run directory keeps of states.
      digest: the tokenizer's SHA-256, which every checkpoint keeps.
      length: steps that the run had until now, on which its rates depend.
      held_out: what measures the losses on what streams hold out.
      ready: a meeting for when the first batch is there; until then an error of one process is an
        error of all.
    """

    run: Run
    tokenizer: Vocabulary
    mesh: Mesh
    loader: Loader
    reached: dict[str, int] | None
    part: tuple[int, int]
    fields: dict[str, Any]
    model: nn.Module
    loss: Bound
    layout: Plan
    checkpoints: Checkpoints
    digest: str
    length: int
    held_out: HeldOut
    ready: Callable[[], None]

    def read_data(self, say: Callable[[str], None]) -> None:
        """Lets the loader go on from where it was, and says what the steps will read."""
        if self.reached is not None:
            self.loader.restore(self.reached)
        for line in self.loader.report(sum(map(self.run.batches, range(1, self.run.steps + 1)))):
            say(line)

    def machine(self, batches: int) -> Machine:
        """What the speed of steps over so many batches is measured against."""
        kind, flops = self.mesh.devices.flat[0].device_kind, self._flops
        return Machine(self.mesh.size, kind, flops and flops * batches, self.part[1])

    @functools.cached_property
    def _flops(self) -> float | None:
        return of_step(self.layout.abstract.params, self.loss, self.fields)

    def save(self, step: int, state: TrainState) -> None:
        """Begins to save a step; a meeting of all processes.

        Raises:
          UserError: the state is not finite, or the save before this one failed.
        """
        data = {"loader": merged(exchange(self.loader.state())), "tokenizer": self.digest}
        self.checkpoints.save(step, state, data, self.layout.letters)


def set_up(
    run: Run,
    place: RunDir,
    say: Callable[[str], None],
    at_exit: contextlib.ExitStack,
    changes: Mapping[str, Any],
) -> tuple[Setup, TrainState]:
    """Makes what the steps of a run need, and the state that the first of them takes.

    Args:
      run: what to train.
      place: the run directory, opened.
      say: told what is found and taken.
      at_exit: the stack on which all that must be ended or given back is put.
      changes: fields of a run that goes on, by path, and their new values.

    Raises:
      UserError: anything that the user can mend.
    """
    ready = at_exit.enter_context(together())
    agree(code() | {"run": json.loads(to_json(run)), "changes": str(changes)})
    resumed = on_first(lambda: saved_steps(place.checkpoints))
    length = run.steps
    if resumed:
        run, length = _resumed(run, place, resumed[-1], changes, say)
    elif changes:
        raise UserError(
            f"{place.path} holds no checkpoint to continue with {', '.join(changes)} changed; give "
            "them as plain options"
        )

    start = None if resumed else Start.of(run)
    tokenizer = _tokenizer(start, place)
    if not changes:  # else when a step has shown that they do
        place.write("run.json", to_json(run))
    mesh = run.mesh.build()
    part = share(mesh, run.rules)
    loader = Loader(run.data, tokenizer, run.seed, *part, _past(run))
    at_exit.enter_context(contextlib.closing(loader))
    fields = {name: stream.fields(tokenizer) for name, stream in run.data.items()}

    at_exit.enter_context(using(mesh, run.rules))
    check_rows(fields, mesh, run.rules)
    check_context(run, fields)
    total, model = losses(run.objectives), build(run)
    init = initializer(model, total, fields)
    average = run.ema is not None
    layout = plan(init, run.optimizer, run.steps, mesh, run.rules, average, run.param_dtype)
    place.require_space(layout.bytes)

    checkpoints = Checkpoints(place.checkpoints, run.keep, say)
    # The save that still runs is finished whatever ends the loop.
    at_exit.callback(checkpoints.finish)
    best = Best.read(place.path)
    checkpoints.best = best and best.step
    checkpoints.clean()
    digest = place.tokenizer_digest()
    state, reached = _begin(start, place, layout, checkpoints, digest, say)
    setup = Setup(
        *(run, tokenizer, mesh, loader, reached, part, fields, model),
        *(bind(model, total), layout, checkpoints, digest, length),
        HeldOut(run, model, tokenizer, mesh, part),
        ready,
    )
    return setup, state


def _resumed(
    run: Run, place: RunDir, step: int, changes: Mapping[str, Any], say: Callable[[str], None]
) -> tuple[Run, int]:
    """The run that goes on, and the steps that it had until now."""

    def check(run: Run) -> int:
        return place.check_same(json.loads(to_json(run)), functools.partial(as_now, run=run))

    try:
        before = run_as_now(place.run_json.read_text(encoding="utf-8"), run)
    except (OSError, ValueError):  # a UserError too: the check says what is wrong
        return run, check(run)
    run, length = continued(run, before, step, changes, check)
    for change in run.history:
        say(said(change))
    return run, length


def _past(run: Run) -> dict[str, Past]:
    """What changed of the streams of a run."""
    found = {}
    for name, stream in run.data.items():
        ours = [c for c in run.history if c.path.startswith(f"data.{name}.")]
        batches = [c.before for c in ours if c.path.endswith(".batch")]
        sources = sum(not c.path.endswith(".batch") for c in ours)
        if ours:
            found[name] = Past(len(ours), sources, next(iter(batches), stream.batch))
    return found


def _tokenizer(start: Start | None, place: RunDir) -> Vocabulary:
    """The tokenizer, as the run directory has it: the same now and when the run goes on."""
    if start is not None:
        on_first(lambda: place.write_origin(start.tokenizer()[1], start.kept()))
    return open_for_training(place.path)


def _begin(
    start: Start | None,
    place: RunDir,
    layout: Plan,
    checkpoints: Checkpoints,
    digest: str,
    say: Callable[[str], None],
) -> tuple[TrainState, dict[str, int] | None]:
    """The first state, and what the loader had reached, or None if it begins too."""
    if restored := checkpoints.restore(layout.abstract):  # 1. go on
        state, saved = restored
        if saved["tokenizer"] != digest:
            raise UserError(
                f"the tokenizer in {place.path} is not the tokenizer of these checkpoints; restore "
                "its files"
            )
        return state, saved["loader"]
    assert start is not None  # a checkpoint was there, and is gone
    state = layout.init(start.run.seed)  # 2. begin from nothing
    params = start.weights(state.params, say)  # or 3. with weights that there are
    return state.begun(params), None
