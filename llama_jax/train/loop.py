"""The training loop, read from top to bottom: it only orders what the other files do.

result = train(presets.get("tiny_decoder"), "runs/tiny", steps=200)
"""

import contextlib
import dataclasses
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax

from llama_jax.checked import checked_call
from llama_jax.config import Run, edit, to_json
from llama_jax.errors import UserError
from llama_jax.kernels.backends import lines, summary
from llama_jax.messages import short
from llama_jax.train.accumulate import joined
from llama_jax.train.best import NOTE, Best, improved
from llama_jax.train.held_out import NAME as HELD_OUT
from llama_jax.train.log import Late, Log
from llama_jax.train.processes import check_divided
from llama_jax.train.profile import Profile, Tracer
from llama_jax.train.rates import rates_said
from llama_jax.train.rows import put
from llama_jax.train.rundir import RunDir
from llama_jax.train.setup import Setup, set_up
from llama_jax.train.signals import Stop, graceful
from llama_jax.train.state import TrainState
from llama_jax.train.step import Programs
from llama_jax.train.trackers import WandB, last_metrics

Found = dict[str, dict[str, float]]  # figures by name, of each evaluation


@dataclasses.dataclass(frozen=True)
class Result:
    """What a call of `train` did.

    Attributes:
      run_dir: where everything was written.
      step: steps done in all.
      metrics: what was measured in the last logged step, e.g. "loss", "mlm/accuracy".
      evaluations: what each evaluation found when it last ran here.
      parameters: how many numbers the model learns.
      seconds: what this call took.
      stopped: the signal that ended it before its last step, or None.
    """

    run_dir: Path
    step: int
    metrics: dict[str, float | None]
    evaluations: Found
    parameters: int
    seconds: float
    stopped: str | None = None


@checked_call
def train(
    run: Run,
    run_dir: str | Path,
    steps: int | None = None,
    progress: bool = True,
    profile: Profile | None = None,
    wandb: str | None = None,
    continue_with: Mapping[str, Any] | None = None,
) -> Result:
    """Trains `run` in `run_dir`, going on from its newest checkpoint if there is one.

    Once it trains, SIGTERM and SIGINT (Ctrl-C) end it after the step at hand, with a checkpoint.

    Args:
      run: what to train.
      run_dir: made if it does not exist; see `RunDir`.
      steps: how many, in place of `run.steps`.
      progress: show progress on standard error.
      profile: steps to trace.
      wandb: the project of Weights & Biases to log to as well.
      continue_with: fields by path that change as the run goes on, such as {"optimizer.rate":
        1e-4}; `train/continued.py` says which may.

    Raises:
      UserError: anything that the user can mend; nothing saved before is lost.
    """
    if not isinstance(run, Run):
        raise UserError(f"run={short(run)}: a Run was expected, e.g. presets.get('tiny_decoder')")
    run = run if steps is None else edit(run, "steps", steps)
    try:
        with RunDir(run_dir) as place, contextlib.ExitStack() as at_exit:
            more = (lambda: WandB(wandb, place.path, to_json(run))) if wandb else None
            log = Log(place, run.steps, progress, more)
            at_exit.callback(log.close)
            tracer = Tracer(profile, place.profile, log.say)
            at_exit.callback(tracer.close)
            return _train(run, place, log, tracer, at_exit, continue_with or {})
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        stream = next(iter(run.data))
        reason = str(error).strip().partition("\n")[0]
        raise UserError(
            f"the memory of the devices is not enough for a step ({reason[:200]}); try a smaller "
            f"--set data.{stream}.batch=N or data.{stream}.task.length=N, or --accumulate N"
        ) from None


def _train(
    run: Run,
    place: RunDir,
    log: Log,
    tracer: Tracer,
    at_exit: contextlib.ExitStack,
    changes: Mapping[str, Any],
) -> Result:
    begin = time.perf_counter()
    setup, state = set_up(run, place, log.say, at_exit, changes)
    step = int(state.step)
    log.start(step)
    _announce(setup, step, place, log.say)
    evaluations, stopped = {}, None
    if step < run.steps:  # 4. or there is nothing to do
        setup.read_data(log.say)
        stop = at_exit.enter_context(graceful())
        if not step:
            _held_out(setup, state, step, log)
        setup.held_out.read()  # of a run that goes on too, before it computes for hours
        step, evaluations = _steps(setup, state, place, log, tracer, stop)
        setup.checkpoints.finish()
        stopped = stop.signal if step < run.steps else None
    if stopped:
        log.say(f"{stopped}: saved step {step} of {run.steps}; give the same command to go on")
    metrics, parameters = last_metrics(place.metrics), setup.layout.parameters
    seconds = time.perf_counter() - begin
    return Result(place.path, step, metrics, evaluations, parameters, seconds, stopped)


def _steps(
    setup: Setup, state: TrainState, place: RunDir, log: Log, tracer: Tracer, stop: Stop
) -> tuple[int, Found]:
    """The steps from a state on: the last that was done, and what evaluations found."""
    run, start = setup.run, int(state.step)
    step, evaluations = start, {}
    programs = Programs(run, setup.layout, setup.loss, log.say)
    late = Late(run, log)
    for step in range(start + 1, run.steps + 1):
        # The step before is still at work on the device while the host makes this batch.
        batches = run.batches(step)
        compiled = step == start + 1 or batches != run.batches(step - 1)
        with log.rates.waiting():
            batch = joined([next(setup.loader) for _ in range(batches)])
        if step == start + 1:
            check_divided(batch, setup.part[0])
            setup.ready()
        if compiled:
            late.report()  # no lap is of two sizes

        tracer.before(step)
        state, metrics = programs(batches, state, put(batch, setup.mesh, run.rules))
        if step == start + 1:
            place.write("run.json", to_json(run))
            place.write("receipts.txt", "\n".join(lines(programs.receipts)) + "\n")
            log.say(f"computed by {summary(programs.receipts)} (why: receipts.txt)")
        if compiled:  # that says nothing about the speed
            jax.block_until_ready(metrics)
            place.keep()
            log.rates.begin(setup.machine(batches))
        tracer.after(step, metrics)

        # The metrics of the step before are there by now; those of this one wait for the next.
        late.report()
        if not compiled:
            log.rates.count(batch)
        late.hold(step, metrics)

        setup.checkpoints.check()
        last, ending = step == run.steps, stop.after(step)
        saved = last or step % run.save_every == 0
        if saved:
            late.report()  # first, for a resumed run writes only the lines after what is saved
            setup.save(step, state)
        if last or not ending:
            found = _evaluations(setup, state, step, log)
            _note_best(setup, place, late, step, state, found, saved)
            evaluations |= found
        if ending or stop.after(step):
            if late.held:  # it is not saved yet
                late.report()
                setup.save(step, state)
            break
    return step, evaluations


def _evaluations(setup: Setup, state: TrainState, step: int, log: Log) -> Found:
    """What the evaluations that are due after a step find; their time does not count."""
    run, found = setup.run, {}
    for name, evaluation in run.evaluations.items():
        every = evaluation.every or run.eval_every
        if step == run.steps or (every and step % every == 0):
            jax.block_until_ready(state)  # the step's time is no part of the pause
            with log.rates.pause():
                found[name] = evaluation(setup.model, state.best, setup.tokenizer, run)
            log.evaluation(step, name, found[name])
    if step == run.steps or (run.eval_every and step % run.eval_every == 0):
        found |= _held_out(setup, state, step, log)
    return found


def _held_out(setup: Setup, state: TrainState, step: int, log: Log) -> Found:
    """The losses on what the streams hold out, if they do; their time does not count."""
    if not setup.held_out:
        return {}
    jax.block_until_ready(state)
    with log.rates.pause():
        found = setup.held_out(state.best)
    log.evaluation(step, HELD_OUT, found)
    return {HELD_OUT: found}


def _note_best(
    setup: Setup, place: RunDir, late: Late, step: int, state: TrainState, found: Found, saved: bool
) -> None:
    """Notes the best step, and saves it if it is not."""
    name = setup.run.keep_best
    best = improved(name, step, found, Best.read(place.path)) if name else None
    if best is None:
        return
    setup.checkpoints.best = step
    if not saved:
        late.report()
        setup.save(step, state)
    setup.checkpoints.finish()  # what is noted is there
    place.write(NOTE, best.content())


def _announce(setup: Setup, start: int, place: RunDir, say: Callable[[str], None]) -> None:
    run, mesh = setup.run, setup.mesh
    if start >= run.steps:
        say(
            f"step {start} of {run.steps} is already done in {place.path}; give more --steps to "
            "go on"
        )
        return
    if start:
        say(f"going on from step {start} in {place.path}")
    if run.dtype == "bfloat16" and mesh.devices.flat[0].platform == "cpu":
        say("a CPU has no bfloat16 products and is slower with them; try --dtype float32")
    for line in rates_said(run, start, setup.length):
        say(line)
    if run.eval_every and not run.evaluations and not setup.held_out:
        say(
            f"eval_every={run.eval_every}, and the run has no evaluations: nothing is evaluated; "
            f"hold something out, such as --data.{next(iter(run.data))}.held_out 0.05"
        )
    count = setup.layout.parameters
    say(f"{run.name}: {count:,} parameters, {mesh.size} device(s), {run.steps} steps")
