"""A plan for people and for programs, and the command that carries it out."""

from collections.abc import Sequence
from typing import Any

from llama_jax.chips import GIB
from llama_jax.plan.candidates import name
from llama_jax.plan.launch import launch, wanted
from llama_jax.plan.legend import legend
from llama_jax.plan.program import least, tokens
from llama_jax.plan.search import Found, Plan
from llama_jax.plan.topology import Topology

DAY = 86_400


def as_json(
    topology: Topology, preset: str, plan: Plan, seconds: float, sets: Sequence[str] = ()
) -> dict[str, Any]:
    """What a program reads of a plan; bytes and seconds are a device's, of a step.

    Args:
      topology: planned for.
      preset: the name of the preset.
      plan: the best.
      seconds: how long compiling took.
      sets: fields that were set beside, for the launch line.
    """
    cost = plan.cost
    free, each = topology.chip.hbm - plan.peak, topology.chip.devices
    away = {"total": sum(plan.host.values()), "there": topology.chip.host_memory}
    return {
        "preset": preset,
        "topology": str(topology),
        "chips": topology.chips,
        "devices": topology.size,
        "tokens_per_second_per_chip": cost.rate * each,
        "step_seconds": cost.seconds,
        "mfu": cost.mfu,
        "tokens_per_day": cost.rate * topology.size * DAY,
        "seconds": {
            "products": cost.products,
            "memory": cost.memory,
            "update": cost.update,
            "network": cost.network,
            "host": cost.host,
            "exposed": cost.exposed,
        },
        "flops_per_device": cost.work,
        "collective_bytes_per_device": sent(plan),
        "hbm_bytes_per_device": plan.hbm | {"total": plan.peak, "free": free},
        "host_bytes_per_device": plan.host | away,
        "mesh": plan.mesh,
        "remat": plan.remat,
        "batch": plan.rows,
        "sequence": tokens(plan.run) // plan.rows if least(plan.run) == 1 else None,
        "streams": {name: stream.batch for name, stream in plan.run.data.items()},
        "compile_seconds": seconds,
        "backends": list(plan.compiled.receipts) if plan.compiled else [],
        "launch": launch(topology, preset, plan.run, sets),
    }


def batch(plan: Plan) -> str:
    """The rows of all chips, stream by stream where there are several."""
    rows = f"batch {plan.rows:,} rows of all chips"
    if least(plan.run) > 1:
        each = (f"{stream.batch:,} {name}" for name, stream in plan.run.data.items())
        return f"{rows}: {', '.join(each)}"
    return f"sequence {tokens(plan.run) // plan.rows:,}, {rows}"


def scaled(largest: float, *units: tuple[float, str]) -> tuple[float, str]:
    """Of units, the largest first, the first in which a number is one or more."""
    return next((unit for unit in units if largest >= unit[0]), units[-1])


def told(number: float, *units: tuple[float, str]) -> str:
    """A number in the unit that suits it."""
    per, unit = scaled(number, *units)
    return f"{number / per:,.1f} {unit}"


def sent(plan: Plan) -> float:
    """Bytes that a device receives in collectives of a step."""
    if plan.compiled is None:
        return 0.0
    return float(
        sum(o.bytes * o.times * (1 + (o.kind == "all-reduce")) for o in plan.compiled.sent)
    )


def lines(
    topology: Topology, preset: str, found: Found, seconds: float, sets: Sequence[str] = ()
) -> list[str]:
    """The report; the arguments are those of `as_json`."""
    plan = found.best[0]
    cost, hbm, device, each = plan.cost, topology.chip.hbm, topology.unit, topology.chip.devices
    per, unit = scaled(plan.peak, (GIB, "GiB"), (2**20, "MiB"))
    tick, s = scaled(cost.seconds, (1.0, "s"), (1e-3, "ms"), (1e-6, "us"))
    work = told(cost.work, (1e12, "TFLOP"), (1e9, "GFLOP"), (1e6, "MFLOP"))
    received = told(sent(plan), (1e9, "GB"), (1e6, "MB"), (1e3, "kB"))
    of_two = f" ({each} devices each)" if each > 1 else ""
    out = [
        f"{preset} on {topology}: {topology.chips} chips{of_two} of {topology.hosts} host(s), "
        f"{batch(plan)} ({tokens(plan.run):,} tokens a step)",
        f"plan: {name(plan)}, compiled in {seconds:.0f} s",
        "",
        f"HBM of a {device}, {unit}",
    ]
    out += [f"  {part:12} {size / per:7.2f}" for part, size in plan.hbm.items()]
    out += [
        f"  {'in all':12} {plan.peak / per:7.2f}   of {hbm / per:,.2f}, "
        f"{(hbm - plan.peak) / per:,.2f} free",
        "",
        f"the host's memory, of a {device}, GiB",
    ]
    out += [f"  {part:12} {size / GIB:7.2f}" for part, size in plan.host.items()]
    room = topology.chip.host_memory / GIB
    out += [
        f"  {'in all':12} {sum(plan.host.values()) / GIB:7.2f}   of {room:,.2f}",
        "",
        f"a step of a {device}",
        f"  products     {cost.products / tick:8.3f} {s}   {work}, recomputation too",
        f"  memory       {cost.memory / tick:8.3f} {s}   beside the products",
        f"  update       {cost.update / tick:8.3f} {s}   weights and moments",
        f"  network      {cost.network / tick:8.3f} {s}   {received} received",
        f"  host         {cost.host / tick:8.3f} {s}   copies there and back; of both "
        f"{cost.exposed / tick:.3f} {s} not hidden",
        f"  in all       {cost.seconds / tick:8.3f} {s}",
        "",
        f"{cost.rate * each:,.0f} tokens/s/chip, MFU {cost.mfu:.1%} (causal attention counted "
        f"half), {cost.rate * topology.size * DAY / 1e9:,.1f} G tokens a day",
    ]
    if plan.compiled:
        out += ["", "computed by", *(f"  {line}" for line in plan.compiled.receipts)]
    if len(found.best) > 1:
        out += [
            "",
            f"the best of {found.tried:,} candidates (the first is compiled, "
            "the others guessed from shapes)",
        ]
        out += [
            f"  {one.cost.rate * each:8,.0f} tokens/s/chip  {one.peak / GIB:6.1f} GiB  {name(one)}"
            for one in found.best
        ]
    if found.failed:
        out += ["", "faster ones that do not fit"]
        out += [f"  {what}: {why}" for what, why in found.failed.items()]
    out += ["", "words", *legend(plan.mesh, plan.remat), ""]
    out += ["launch, on every host" if topology.hosts > 1 else "launch"]
    missing = wanted(plan.run)
    if missing:
        out += [f"  ({', '.join(missing)}: put in yours, or give it to plan with --set)"]
    return [*out, f"  {launch(topology, preset, plan.run, sets)}"]
