"""The search: every mesh, policy and batch is guessed from shapes, the best few are compiled."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from llama_jax.config import Run
from llama_jax.errors import UserError
from llama_jax.plan import network
from llama_jax.plan.chips import GIB
from llama_jax.plan.cost import OF_WEIGHTS, Cost, Sent, of
from llama_jax.plan.model import Guess, Layout, Shapes
from llama_jax.plan.program import QUICK, REMATS, Compiled, Step, TooBig, changed
from llama_jax.plan.topology import Topology

# Policies tried unasked: what offloading costs depends on the link to the host, which no table has.
TRIED = tuple(remat for remat in REMATS if remat != "offload")
# Rows of a device that shares them with no other.
ROWS = (1, 2, 3, 4, 5, 6, 8, 10, 12, 16, 24, 32, 48, 64)
TRIES = 4  # candidates compiled before giving up
# A guess of memory that is so much beyond what there is is not compiled.
SURELY = 1.05
# Plans so close are as fast: the one with fewer rows, or fewer axes, is taken.
ALIKE = 0.98


@dataclass(frozen=True)
class Plan:
    """A plan that was compiled.

    Attributes:
      run: with mesh, policy, batch and sequence set.
      mesh: axis -> size, those above 1.
      remat: policy.
      rows: of all devices.
      compiled: what the compiler says; None if this is a guess from shapes.
      hbm: bytes a device by part.
      cost: seconds.
    """

    run: Run
    mesh: dict[str, int]
    remat: str
    rows: int
    compiled: Compiled | None
    hbm: dict[str, float]
    cost: Cost

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


def meshes(topology: Topology, run: Run, shapes: Shapes) -> Iterator[dict[str, int]]:
    """The meshes that the weights and the sequence can be split over."""
    chips, slices = topology.chips, topology.slices
    for tensor in _powers(min(chips, 16)):
        for context in _powers(min(chips // tensor, 8)):
            if shapes.tokens % (2 * context):
                continue
            left = chips // (tensor * context)
            if left * tensor * context != chips or left % slices:
                continue
            datas = {slices, 2 * slices, 4 * slices, left}
            for data in sorted(d for d in datas if left % d == 0):
                sizes = {"data": data, "fsdp": left // data, "context": context, "tensor": tensor}
                if all(weight.ways(sizes, run.rules) for weight in shapes.weights):
                    yield sizes


def _powers(most: int) -> list[int]:
    return [2**i for i in range(int(math.log2(most)) + 1)]


def guesses(
    topology: Topology,
    shapes: Shapes,
    devices: list[Any],
    mesh: dict[str, int] | None = None,
    remat: str | None = None,
    rows: int | None = None,
) -> list[Guess]:
    """Every candidate, what was asked for held fixed, the fastest first."""
    run, found = shapes.run, []
    for sizes in [mesh] if mesh else meshes(topology, run, shapes):
        here = changed(run, mesh=sizes).mesh.build(devices)
        layout = Layout(shapes, topology, sizes, here)
        batches = [rows] if rows else [n * layout.copies for n in ROWS]
        for batch in batches:
            if batch % layout.copies == 0:
                found += [layout.guess(one, batch) for one in ([remat] if remat else shapes.row)]
    return sorted(found, key=_order)


def _order(guess: Guess) -> float:
    """Fast ones first; each axis of a mesh costs something that is not in the estimate."""
    return -guess.cost.rate * ALIKE ** sum(n > 1 for n in guess.mesh.values())


def evaluate(
    topology: Topology, run: Run, devices: list[Any], shapes: Shapes, guess: Guess, effort: float
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
    moved, held = old.memory * topology.chip.bandwidth, compiled.weights / 4
    work = step.work() / topology.chips
    cost = of(topology.chip, work, old.model, old.tokens, held, moved, sent)
    return Plan(run, guess.mesh, guess.remat, guess.rows, compiled, hbm, cost)


def weigh(topology: Topology, mesh: Any, compiled: Compiled) -> Sent:
    """The network's part of a compiled step."""
    weights = activations = received = 0.0
    for one, there, seconds in network.total(topology, mesh, compiled.sent):
        received += one.bytes * one.times * (2 if one.kind == "all-reduce" else 1)
        ring = one.kind == "collective-permute"  # computes with one part while the next comes
        if there.axes <= OF_WEIGHTS or ring:
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
    effort: float = QUICK,
    say: Callable[[str], None] = lambda text: None,
) -> Found:
    """The best plans, what was asked for held fixed.

    Args:
      topology: to plan for.
      run: its batch, mesh and remat are replaced.
      devices: of the topology.
      mesh: sizes, or None to choose them.
      remat: policy, or None.
      rows: of all devices, or None.
      effort: the compiler's.
      say: told what is being done.

    Raises:
      UserError: nothing fits; the nearest is named.
    """
    shapes = Shapes.of(run, (remat,) if remat else TRIED)
    every = guesses(topology, shapes, devices, mesh, remat, rows)
    likely = _likely(topology, shapes, every, mesh, rows)
    hbm, failed = topology.chip.hbm, {}
    for guess in _frugal(every[: every.index(likely[0])])[:3]:
        failed[name(guess)] = f"{_biggest(guess.hbm, guess.peak, hbm)} (from shapes)"
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
        raise UserError(f"no plan fits into {hbm / GIB:.1f} GiB a chip; tried {reasons[:600]}")
    others = [g for g in likely if name(g) not in failed and name(g) != name(best[0])]
    for guess in others[:4]:
        one = changed(run, mesh=guess.mesh, remat=guess.remat, batch=guess.rows)
        best.append(Plan(one, guess.mesh, guess.remat, guess.rows, None, guess.hbm, guess.cost))
    return Found(best, failed, len(every))


def ranked(
    topology: Topology, run: Run, devices: list[Any], rows: int | None = None
) -> list[Guess]:
    """The candidates that seem to fit, guessed from shapes, the best first.

    Raises:
      UserError: none does.
    """
    shapes = Shapes.of(run, TRIED)
    every = guesses(topology, shapes, devices, rows=rows)
    return _likely(topology, shapes, every, None, rows)


def _likely(
    topology: Topology, shapes: Shapes, every: list[Guess], mesh: Any, rows: int | None
) -> list[Guess]:
    """Those that may fit, one for each mesh and policy."""
    if not every:
        raise UserError(_nothing(topology, shapes, mesh, rows))
    found = [g for g in every if g.peak <= topology.chip.hbm * SURELY]
    if not found:
        raise UserError(_too_big(topology, min(every, key=lambda g: g.peak), every))
    return _frugal(found)


def _frugal(found: list[Guess]) -> list[Guess]:
    """One candidate for each mesh and policy: the fewest rows that are about as fast as can be."""
    kept: dict[tuple[Any, ...], Guess] = {}
    fastest: dict[tuple[Any, ...], float] = {}
    for guess in found:
        key = (*guess.mesh.items(), guess.remat)
        fastest.setdefault(key, guess.cost.rate)
        if guess.cost.rate >= ALIKE * fastest[key]:
            kept[key] = min(guess, kept.get(key, guess), key=lambda g: g.rows)
    return sorted(kept.values(), key=_order)


def name(guess: Guess | Plan) -> str:
    """A candidate in a few words: "fsdp=256 remat=block batch=1024"."""
    mesh = " ".join(f"{axis}={n}" for axis, n in guess.mesh.items() if n > 1) or "data=1"
    return f"{mesh} remat={guess.remat} batch={guess.rows}"


def _biggest(parts: dict[str, float], peak: float, hbm: float) -> str:
    part = max(parts, key=lambda k: parts[k])
    return (
        f"{peak / GIB:.1f} of {hbm / GIB:.1f} GiB a chip, {part} {parts[part] / GIB:.1f} GiB "
        "the largest"
    )


def _too_big(topology: Topology, nearest: Guess, every: list[Guess]) -> str:
    asked = every[0] if len({name(g) for g in every}) == 1 else nearest
    return (
        f"nothing fits on {topology}: the smallest, {name(asked)}, needs "
        f"{_biggest(asked.hbm, asked.peak, topology.chip.hbm)}; take more chips, a shorter "
        "--sequence, or leave --mesh, --remat and --batch to the search"
    )


def _nothing(topology: Topology, shapes: Shapes, mesh: Any, rows: int | None) -> str:
    if mesh and rows:
        copies = math.prod(mesh.get(axis, 1) for axis in ("data", "fsdp", "stage"))
        return (
            f"--batch {rows} rows cannot be shared by the {copies} devices of the mesh that have "
            f"rows of their own; give a multiple, e.g. --batch {-(-rows // copies) * copies}"
        )
    if rows:
        return f"--batch {rows} rows cannot be shared by any mesh of {topology.chips} chips"
    return f"no mesh of the {topology.chips} chips of {topology} divides {shapes.run.name}"


def fixed(mesh: dict[str, int], topology: Topology) -> dict[str, int]:
    """A mesh as asked for, its -1 filled in.

    Raises:
      UserError: it does not multiply to the chips.
    """
    sizes = {"data": 1} | mesh
    known = math.prod(n for n in sizes.values() if n > 0)
    if list(sizes.values()).count(-1) == 1 and topology.chips % known == 0:
        sizes = {a: topology.chips // known if n == -1 else n for a, n in sizes.items()}
    product = math.prod(sizes.values())
    if product != topology.chips or min(sizes.values()) < 1:
        asked = ",".join(f"{a}={n}" for a, n in mesh.items())
        raise UserError(
            f"--mesh {asked} multiplies to {product}, {topology} has {topology.chips} chips; "
            "give sizes whose product that is, or one -1"
        )
    return sizes
