"""A plan for people and for programs, and the command that carries it out."""

import shlex
from typing import Any

from llama_jax import presets
from llama_jax.axes import FSDP_TENSOR_RESIDUAL
from llama_jax.chips import GIB
from llama_jax.config import Run, children
from llama_jax.plan.candidates import name
from llama_jax.plan.program import least, stacks, tokens
from llama_jax.plan.search import Found, Plan
from llama_jax.plan.topology import Topology
from llama_jax.presets.meshes import laid_out

DAY = 86_400


def as_json(topology: Topology, preset: str, plan: Plan, seconds: float) -> dict[str, Any]:
    """What a program reads of a plan; bytes and seconds, a chip and a step.

    Args:
      topology: planned for.
      preset: the name of the preset.
      plan: the best.
      seconds: how long compiling took.
    """
    cost = plan.cost
    free = topology.chip.hbm - plan.peak
    return {
        "preset": preset,
        "topology": str(topology),
        "chips": topology.chips,
        "tokens_per_second_per_chip": cost.rate,
        "step_seconds": cost.seconds,
        "mfu": cost.mfu,
        "tokens_per_day": cost.rate * topology.chips * DAY,
        "seconds": {
            "products": cost.products,
            "memory": cost.memory,
            "update": cost.update,
            "network": cost.network,
            "network_exposed": cost.exposed,
        },
        "flops_per_chip": cost.work,
        "collective_bytes_per_chip": sent(plan),
        "hbm_bytes_per_chip": plan.hbm | {"total": plan.peak, "free": free},
        "mesh": plan.mesh,
        "remat": plan.remat,
        "batch": plan.rows,
        "sequence": tokens(plan.run) // plan.rows if least(plan.run) == 1 else None,
        "streams": {name: stream.batch for name, stream in plan.run.data.items()},
        "compile_seconds": seconds,
        "backends": list(plan.compiled.receipts) if plan.compiled else [],
        "launch": launch(topology, preset, plan.run),
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
    """Bytes that a chip receives in collectives of a step."""
    if plan.compiled is None:
        return 0.0
    return float(
        sum(o.bytes * o.times * (1 + (o.kind == "all-reduce")) for o in plan.compiled.sent)
    )


def launch(topology: Topology, preset: str, run: Run) -> str:
    """The command that trains by a plan, once on every host."""
    before = presets.get(preset)
    wide = run.rules == FSDP_TENSOR_RESIDUAL != before.rules
    was = laid_out(before, "residual").mesh if wide else before.mesh
    sets: dict[str, Any] = {
        f"mesh.{axis}": size
        for axis, size in children(run.mesh).items()
        if size != getattr(was, axis) or axis in ("data", "fsdp")
    }
    sets |= {f"{path}.remat": stack.remat for path, stack in stacks(run.model).items()}
    for stream, data in run.data.items():
        sets[f"data.{stream}.batch"] = data.batch
        if hasattr(data.task, "length"):
            sets[f"data.{stream}.task.length"] = data.task.length
    words = ["llama-jax", "train", preset, "--run-dir", f"runs/{preset}"]
    words += ["--mesh", "residual"] if wide else []
    words += ["--distributed"] if topology.hosts > 1 else []
    words += [word for path, value in sets.items() for word in ("--set", f"{path}={value}")]
    memory = "XLA_PYTHON_CLIENT_MEM_FRACTION=.92 " if topology.chip.gpu else ""
    return memory + shlex.join(words)


def lines(topology: Topology, preset: str, found: Found, seconds: float) -> list[str]:
    """The report."""
    plan = found.best[0]
    cost, hbm = plan.cost, topology.chip.hbm
    per, unit = scaled(plan.peak, (GIB, "GiB"), (2**20, "MiB"))
    tick, s = scaled(cost.seconds, (1.0, "s"), (1e-3, "ms"), (1e-6, "us"))
    work = told(cost.work, (1e12, "TFLOP"), (1e9, "GFLOP"), (1e6, "MFLOP"))
    received = told(sent(plan), (1e9, "GB"), (1e6, "MB"), (1e3, "kB"))
    out = [
        f"{preset} on {topology}: {topology.chips} chips of {topology.hosts} host(s), "
        f"{batch(plan)} ({tokens(plan.run):,} tokens a step)",
        f"plan: {name(plan)}, compiled in {seconds:.0f} s",
        "",
        f"HBM of a chip, {unit}",
    ]
    out += [f"  {part:12} {size / per:7.2f}" for part, size in plan.hbm.items()]
    out += [
        f"  {'in all':12} {plan.peak / per:7.2f}   of {hbm / per:,.2f}, "
        f"{(hbm - plan.peak) / per:,.2f} free",
        "",
        "a step of a chip",
        f"  products     {cost.products / tick:8.3f} {s}   {work}, recomputation too",
        f"  memory       {cost.memory / tick:8.3f} {s}   beside the products",
        f"  update       {cost.update / tick:8.3f} {s}   weights and moments",
        f"  network      {cost.network / tick:8.3f} {s}   {received} received; "
        f"{cost.exposed / tick:.3f} {s} not hidden",
        f"  in all       {cost.seconds / tick:8.3f} {s}",
        "",
        f"{cost.rate:,.0f} tokens/s/chip, MFU {cost.mfu:.1%} (causal attention counted half), "
        f"{cost.rate * topology.chips * DAY / 1e9:,.1f} G tokens a day",
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
            f"  {one.cost.rate:8,.0f} tokens/s/chip  {one.peak / GIB:6.1f} GiB  {name(one)}"
            for one in found.best
        ]
    if found.failed:
        out += ["", "faster ones that do not fit"]
        out += [f"  {what}: {why}" for what, why in found.failed.items()]
    return [
        *out,
        "",
        "launch, on every host" if topology.hosts > 1 else "launch",
        f"  {launch(topology, preset, plan.run)}",
    ]
