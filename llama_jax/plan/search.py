"""The search: candidates are ranked by what shapes say of them, and the best few are compiled."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from llama_jax.chips import GIB
from llama_jax.config import Run
from llama_jax.errors import UserError
from llama_jax.plan import network
from llama_jax.plan.activations import head_dim
from llama_jax.plan.candidates import SURELY, frugal, guesses, name
from llama_jax.plan.cost import OF_WEIGHTS, Cost, Sent, of, updated
from llama_jax.plan.model import Guess, Shapes, in_host
from llama_jax.plan.policies import tried
from llama_jax.plan.program import QUICK, Compiled, Step, TooBig, changed, shared
from llama_jax.plan.refusals import biggest, instead, no_room, nothing, too_big
from llama_jax.plan.topology import Topology
from llama_jax.train.flops import Work

TRIES = 4  # candidates compiled before giving up


@dataclass(frozen=True)
class Plan:
    """A plan that was compiled.

    Attributes:
      run: with mesh, policy, batch and sequence set.
      mesh: axis -> size, those above 1.
      remat: policy.
      rows: rows of all devices together.
      compiled: what the compiler says; None if this is a guess from shapes.
      hbm: bytes a device by part.
      cost: seconds.
      host: bytes of its host's memory by part.
    """

    run: Run
    mesh: dict[str, int]
    remat: str
    rows: int
    compiled: Compiled | None
    hbm: dict[str, float]
    cost: Cost
    host: dict[str, float]

    @property
    def peak(self) -> float:
        """Bytes."""
        return sum(self.hbm.values())


@dataclass(frozen=True)
class Found:
    """What a search found.

    Attributes:
      best: the plans, the best first; the first is compiled.
      failed: candidate -> why it does not do.
      tried: candidates guessed.
    """

    best: list[Plan]
    failed: dict[str, str]
    tried: int


def evaluate(
    topology: Topology, run: Run, devices: list[Any], shapes: Shapes, guess: Guess, effort: str
) -> Plan:
    """Compiles a candidate, and prices what was compiled.

    Raises:
      TooBig: it does not fit.
    """
    run = changed(run, mesh=guess.mesh, remat=guess.remat, batch=guess.rows)
    step = Step.of(run, devices)
    compiled = step.compiled(effort)
    hbm = {
        "weights": float(compiled.weights),
        "optimizer": float(compiled.optimizer),
        "batch": float(compiled.batch),
        "temporary": float(compiled.temporary),
    }
    if compiled.peak > topology.chip.hbm:
        reason = f"{compiled.peak / GIB:.1f} of {topology.chip.hbm / GIB:.1f} GiB"
        raise TooBig(reason, compiled.peak)
    sent = weigh(topology, step.mesh, compiled)
    old = guess.cost
    moved, away = old.memory * topology.chip.bandwidth, float(compiled.host)
    host = in_host(compiled.weights + compiled.optimizer, away)
    if sum(host.values()) > topology.chip.host_memory:
        raise TooBig(no_room(host, topology.chip), compiled.peak)
    moments = updated(compiled.weights, compiled.optimizer)
    total, part = step.work()
    work = Work(total / topology.size, part / topology.size)
    heads = head_dim(run.model)
    cost = of(topology.chip, work, heads, old.model, old.tokens, moments, moved, sent, away)
    return Plan(run, guess.mesh, guess.remat, guess.rows, compiled, hbm, cost, host)


def weigh(topology: Topology, mesh: Any, compiled: Compiled) -> Sent:
    """The network's part of a compiled step."""
    weights = activations = received = 0.0
    for one, there, seconds in network.total(topology, mesh, compiled.sent):
        received += one.bytes * one.times * (2 if one.kind == "all-reduce" else 1)
        ring = one.kind == "collective-permute"  # computes with one part while the next comes
        # Gradients are summed over the parts of a sequence as well.
        if ring or (there.axes & OF_WEIGHTS and there.axes <= OF_WEIGHTS | {"context"}):
            weights += seconds
        else:
            activations += seconds
    return Sent(weights, activations, received)


def search(
    topology: Topology,
    run: Run,
    devices: list[Any],
    mesh: dict[str, int] | None = None,
    remat: str | None = None,
    rows: int | None = None,
    effort: str = QUICK,
    say: Callable[[str], None] = lambda text: None,
) -> Found:
    """The best plans, what was asked for held fixed.

    Args:
      topology: to plan for.
      run: the Run, whose batch, mesh and remat are replaced.
      devices: how many devices the topology has.
      mesh: sizes, or None to choose them.
      remat: policy, or None.
      rows: rows of all devices together, or None.
      effort: the compiler's.
      say: told what is being done.

    Raises:
      UserError: nothing fits; the nearest is named.
    """
    if rows:
        shared(run, rows)  # refuses rows that the streams cannot have
    shapes = Shapes.of(run, (remat,) if remat else tried(topology.chip.gpu, run))
    every = guesses(topology, shapes, devices, mesh, remat, rows)
    try:
        likely = _likely(topology, shapes, every, mesh, rows)
    except TooBig as error:
        better = instead(topology, run, devices, mesh, remat, rows)
        raise UserError(f"{error}; {better}") from None
    hbm, failed = topology.chip.hbm, {}
    faster = [g for g in every[: every.index(likely[0])] if g.peak > hbm * SURELY]
    for guess in frugal(faster)[:3]:
        failed[name(guess)] = f"{biggest(guess.hbm, guess.peak, hbm)} (from shapes)"
    best: list[Plan] = []
    for guess in likely[:TRIES] if mesh is None or rows is None else likely[:1]:
        say(
            f"compiling {name(guess)}: guessed {guess.cost.rate:,.0f} tokens/s/chip, "
            f"{guess.peak / GIB:.1f} GiB"
        )
        try:
            plan = evaluate(topology, run, devices, shapes, guess, effort)
        except TooBig as error:
            failed[name(guess)] = f"does not fit: {error}"
            continue
        best.append(plan)
        break
    if not best:
        reasons = "; ".join(f"{k}: {v}" for k, v in failed.items())
        better = instead(topology, run, devices, mesh, remat, rows)
        raise UserError(f"{reasons[:600]}, of {hbm / GIB:.1f} GiB a chip; {better}")
    others = [g for g in likely if name(g) not in failed and name(g) != name(best[0])]
    for guess in others[:4]:
        one = changed(run, mesh=guess.mesh, remat=guess.remat, batch=guess.rows)
        best.append(
            Plan(one, guess.mesh, guess.remat, guess.rows, None, guess.hbm, guess.cost, guess.host)
        )
    return Found(best, failed, len(every))


def ranked(
    topology: Topology, shapes: Shapes, devices: list[Any], rows: int | None = None
) -> list[Guess]:
    """The candidates that seem to fit, guessed from shapes, the best first.

    Raises:
      UserError: nothing divides.
      TooBig: none fits.
    """
    every = guesses(topology, shapes, devices, rows=rows)
    return _likely(topology, shapes, every, None, rows)


def _likely(
    topology: Topology, shapes: Shapes, every: list[Guess], mesh: Any, rows: int | None
) -> list[Guess]:
    """Those that may fit, one for each mesh and policy."""
    if not every:
        raise UserError(nothing(topology, shapes, mesh, rows))
    chip = topology.chip
    found = [g for g in every if g.peak <= chip.hbm * SURELY]
    if found and not any(g.held <= chip.host_memory for g in found):
        least = min(found, key=lambda g: g.held)
        raise TooBig(f"{name(least)}: {no_room(least.host, chip)}", least.peak)
    found = [g for g in found if g.held <= chip.host_memory]
    if not found:
        least = min(every, key=lambda g: g.peak)
        raise TooBig(too_big(topology, least, every), least.peak)
    return frugal(found)
