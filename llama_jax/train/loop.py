"""The training loop, read from top to bottom: it only orders what the other files do.

result = train(presets.get("tiny_decoder"), "runs/tiny", steps=200)
"""

import contextlib
import dataclasses
import functools
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax

from llama_jax.axes import using
from llama_jax.config import Run, as_now, to_json
from llama_jax.data.loader import Loader, merged
from llama_jax.errors import UserError
from llama_jax.kernels.backends import lines, recording, strictly, summary
from llama_jax.objectives.base import losses
from llama_jax.text.files import open_for_training
from llama_jax.text.vocabulary import Vocabulary
from llama_jax.train.accumulate import joined
from llama_jax.train.checkpoint import Checkpoints, saved_steps
from llama_jax.train.flops import of_step
from llama_jax.train.init_from import Start, check_context
from llama_jax.train.load import build
from llama_jax.train.log import Log
from llama_jax.train.processes import (
    Together,
    agree,
    check_divided,
    code,
    exchange,
    on_first,
    together,
)
from llama_jax.train.profile import Profile, Tracer
from llama_jax.train.rundir import RunDir
from llama_jax.train.signals import graceful
from llama_jax.train.state import Plan, TrainState, plan
from llama_jax.train.step import bind, check_rows, initializer, make_train_step, put, share
from llama_jax.train.throughput import Machine
from llama_jax.train.trackers import WandB, last_metrics

# So many steps in a row without a finite gradient do not mend themselves.
HOPELESS = 20


@dataclasses.dataclass(frozen=True)
class Result:
    """What a call of `train` did.

    Attributes:
      run_dir: where everything was written.
      step: steps done in all.
      metrics: figures of the last logged step, e.g. "loss", "mlm/accuracy".
      evaluations: what each evaluation found when it last ran here.
      parameters: how many numbers the model learns.
      seconds: how long this call took.
      stopped: the signal that ended it before its last step, or None.
    """

    run_dir: Path
    step: int
    metrics: dict[str, float | None]
    evaluations: dict[str, dict[str, float]]
    parameters: int
    seconds: float
    stopped: str | None = None


def train(
    run: Run,
    run_dir: str | Path,
    steps: int | None = None,
    progress: bool = True,
    profile: Profile | None = None,
    wandb: str | None = None,
) -> Result:
    """Trains `run` in `run_dir`, going on from its newest checkpoint if there is one.

    Once it trains, SIGTERM and SIGINT (Ctrl-C) end it after the step at hand, with a checkpoint.

    Args:
      run: what to train.
      run_dir: made if it does not exist; see `RunDir`.
      steps: in place of `run.steps`.
      progress: show progress on standard error.
      profile: steps to trace.
      wandb: the project of Weights & Biases to log to as well.

    Raises:
      UserError: anything that the user can mend; nothing saved before is lost.
    """
    run = run if steps is None else dataclasses.replace(run, steps=steps)
    try:
        with RunDir(run_dir) as place, contextlib.ExitStack() as at_exit:
            more = (lambda: WandB(wandb, place.path, to_json(run))) if wandb else None
            log = Log(place, run.steps, progress, more)
            at_exit.callback(log.close)
            tracer = Tracer(profile, place.profile, log.say)
            at_exit.callback(tracer.close)
            return _train(run, place, log, tracer, at_exit)
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
    run: Run, place: RunDir, log: Log, tracer: Tracer, at_exit: contextlib.ExitStack
) -> Result:
    begin = time.perf_counter()
    ready = at_exit.enter_context(together())
    agree(code() | {"run": json.loads(to_json(run))})
    resumed = on_first(lambda: bool(saved_steps(place.checkpoints)))
    if resumed:
        place.check_same(json.loads(to_json(run)), functools.partial(as_now, run=run))

    begin_with = None if resumed else Start.of(run)
    tokenizer = _tokenizer(begin_with, place)
    place.write("run.json", to_json(run))
    mesh = run.mesh.build()
    part, parts = share(mesh, run.rules)
    loader = Loader(run.data, tokenizer, run.seed, part, parts)
    at_exit.callback(loader.close)
    fields = {name: stream.fields(tokenizer) for name, stream in run.data.items()}

    at_exit.enter_context(using(mesh, run.rules))
    check_rows(fields, mesh, run.rules)
    check_context(run, fields)
    total = losses(run.objectives)
    model = build(run)
    init = initializer(model, total, fields)
    layout = plan(init, run.optimizer, run.steps, mesh, run.rules, ema=run.ema is not None)
    place.require_space(layout.bytes)

    checkpoints = Checkpoints(place.checkpoints, run.keep, log.say)
    # The save that still runs is finished whatever ends the loop.
    at_exit.callback(checkpoints.finish)
    checkpoints.clean()
    digest = place.tokenizer_digest()
    state, reached = _begin(begin_with, place, layout, checkpoints, digest, log.say)
    start = int(state.step)
    log.start(start)
    evaluations: dict[str, dict[str, float]] = {}

    def result(step: int, stopped: str | None = None) -> Result:
        seconds = time.perf_counter() - begin
        metrics = last_metrics(place.metrics)
        return Result(place.path, step, metrics, evaluations, layout.parameters, seconds, stopped)

    if start >= run.steps:  # 4. nothing to do
        log.say(
            f"step {start} of {run.steps} is already done in {place.path}; give more --steps to "
            "go on"
        )
        return result(start)
    if start:
        log.say(f"going on from step {start} in {place.path}")
    if run.dtype == "bfloat16" and mesh.devices.flat[0].platform == "cpu":
        log.say("a CPU has no bfloat16 products and is slower with them; try --dtype float32")
    log.say(
        f"{run.name}: {layout.parameters:,} parameters, {mesh.size} device(s), {run.steps} steps"
    )

    loss = bind(model, total)

    @functools.cache
    def train_step(batches: int):
        """The step over so many batches of the loader; another number is another program."""
        micro, rate = run.accumulate * batches, run.optimizer.rate_at(run.steps)
        if run.batch_schedule:
            log.say(f"a step takes {batches} batch(es) from here on, in {micro} micro-batches")
        return make_train_step(layout, loss, rate, run.objectives, micro, run.ema)

    def save(late: tuple[int, Any], state: TrainState) -> None:
        # What is saved is logged first: a resumed run writes only the lines after it.
        _report(log, run, *late)
        data = {"loader": merged(exchange(loader.state())), "tokenizer": digest}
        checkpoints.save(late[0], state, data, layout.letters)

    if reached is not None:
        loader.restore(reached)
    for line in loader.report(sum(map(run.batches, range(1, run.steps + 1)))):
        log.say(line)
    stop = at_exit.enter_context(graceful())
    step, late, kind = start, None, mesh.devices.flat[0].device_kind
    for step in range(start + 1, run.steps + 1):
        # The step before is still at work on the device while the host makes this batch.
        batches = run.batches(step)
        compiled = step == start + 1 or batches != run.batches(step - 1)
        with log.waiting():
            batch = joined([next(loader) for _ in range(batches)])
        if step == start + 1:
            check_divided(batch, part)
            ready()
        if compiled and late is not None:  # no lap is of two sizes
            _report(log, run, *late)
            late = None
        tracer.before(step)
        with recording() as receipts, strictly(run.strict):
            state, metrics = train_step(batches)(state, put(batch, mesh, run.rules))
        if step == start + 1:
            place.write("receipts.txt", "\n".join(lines(receipts)) + "\n")
            log.say(f"computed by {summary(receipts)} (why: receipts.txt)")
        if compiled:  # that says nothing about the speed
            jax.block_until_ready(metrics)
            flops = of_step(init, loss, fields)
            log.begin(Machine(mesh.size, kind, flops and flops * batches, parts))
        tracer.after(step, metrics)
        if late is not None:
            _report(log, run, *late)
        if not compiled:
            log.count(batch)
        late = step, metrics

        checkpoints.check()
        last, ending = step == run.steps, stop.after(step)
        if last or step % run.save_every == 0:
            save(late, state)
            late = None
        for name, evaluation in run.evaluations.items():
            every = evaluation.every or run.eval_every
            if last or (every and step % every == 0 and not ending):
                jax.block_until_ready(metrics)  # the step's time is no part of the pause
                with log.pause():
                    evaluations[name] = evaluation(model, state.best, tokenizer, run)
                log.evaluation(step, name, evaluations[name])
        if ending or stop.after(step):
            if late is not None:
                save(late, state)
            break

    checkpoints.finish()
    if stop.signal and step < run.steps:
        log.say(f"{stop.signal}: saved step {step} of {run.steps}; give the same command to go on")
        return result(step, stop.signal)
    return result(step)


def _begin(
    begin_with: Start | None,
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
    assert begin_with is not None  # a checkpoint was there, and is gone
    state = layout.init(begin_with.run.seed)  # 2. begin from nothing
    params = begin_with.weights(state.params, say)  # or 3. with weights that there are
    return state.begun(params), None


def _report(log: Log, run: Run, step: int, metrics: dict[str, Any]) -> None:
    """Waits for a step, in general the one before the one dispatched, and logs it if due."""
    grows = run.batches(step + 1) != run.batches(step)
    if step < run.steps and step % run.log_every and not grows:
        jax.block_until_ready(metrics["loss"])
        return
    values = {name: value.item() for name, value in jax.device_get(metrics).items()}
    values = {"loss": values.pop("loss")} | values
    in_row = values.pop("skipped_in_row")
    log.metrics(step, values)
    if in_row >= HOPELESS:
        raise Together(
            f"the last {in_row:.0f} steps to {step} had a loss or gradient that is not finite and "
            "changed nothing; try a lower --optimizer.rate or a longer warmup, from the checkpoint "
            "before"
        )


def _tokenizer(start: Start | None, place: RunDir) -> Vocabulary:
    """The tokenizer, as the run directory has it: the same now and when the run goes on."""
    if start is not None:
        on_first(lambda: place.write_tokenizer(start.tokenizer()[1]))
    return open_for_training(place.path)
