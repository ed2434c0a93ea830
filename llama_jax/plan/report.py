"""A plan for people and for programs, and the command that carries it out."""

import shlex
from typing import Any

from llama_jax.axes import FSDP_TENSOR_RESIDUAL
from llama_jax.config import Run
from llama_jax.plan.candidates import name
from llama_jax.plan.chips import GIB
from llama_jax.plan.program import stacks, tokens
from llama_jax.plan.search import Found, Plan
from llama_jax.plan.topology import Topology

DAY = 86_400


def as_json(topology: Topology, preset: str, plan: Plan, seconds: float) -> dict[str, Any]:
    """What a program reads of a plan; bytes and seconds, a chip and a step.

    Args:
      topology: planned for.
      preset: its name.
      plan: the best.
      seconds: of compiling it.
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
        "sequence": tokens(plan.run) // plan.rows,
        "compile_seconds": seconds,
        "backends": list(plan.compiled.receipts) if plan.compiled else [],
        "launch": launch(topology, preset, plan.run),
    }


def sent(plan: Plan) -> float:
    """Bytes that a chip receives in collectives of a step."""
    if plan.compiled is None:
        return 0.0
    return float(
        sum(o.bytes * o.times * (1 + (o.kind == "all-reduce")) for o in plan.compiled.sent)
    )


def launch(topology: Topology, preset: str, run: Run) -> str:
    """The command that trains by a plan, once on every host."""
    sets: dict[str, Any] = {}
    for axis in ("data", "fsdp", "stage", "context", "tensor"):
        size = getattr(run.mesh, axis, 1)
        if size != 1 or axis in ("data", "fsdp"):
            sets[f"mesh.{axis}"] = size
    sets |= {f"{path}.remat": stack.remat for path, stack in stacks(run.model).items()}
    for stream, data in run.data.items():
        sets[f"data.{stream}.batch"] = data.batch
        if hasattr(data.task, "length"):
            sets[f"data.{stream}.task.length"] = data.task.length
    words = ["llama-jax", "train", preset, "--run-dir", f"runs/{preset}"]
    words += ["--mesh", "residual"] if run.rules == FSDP_TENSOR_RESIDUAL else []
    words += ["--distributed"] if topology.hosts > 1 else []
    words += [word for path, value in sets.items() for word in ("--set", f"{path}={value}")]
    before = "XLA_PYTHON_CLIENT_MEM_FRACTION=.92 " if topology.chip.gpu else ""
    return before + shlex.join(words)


def lines(topology: Topology, preset: str, found: Found, seconds: float) -> list[str]:
    """The report."""
    plan = found.best[0]
    cost, hbm = plan.cost, topology.chip.hbm
    length = tokens(plan.run) // plan.rows
    out = [
        f"{preset} on {topology}: {topology.chips} chips of {topology.hosts} host(s), sequence "
        f"{length:,}, batch {plan.rows:,} rows of all chips ({tokens(plan.run):,} tokens a step)",
        f"plan: {name(plan)}, compiled in {seconds:.0f} s",
        "",
        "HBM of a chip, GiB",
    ]
    out += [f"  {part:12} {size / GIB:7.2f}" for part, size in plan.hbm.items()]
    out += [
        f"  {'in all':12} {plan.peak / GIB:7.2f}   of {hbm / GIB:.2f}, "
        f"{(hbm - plan.peak) / GIB:.2f} free",
        "",
        "a step of a chip",
        f"  products     {cost.products:8.3f} s   {cost.work / 1e12:,.0f} TFLOP, recomputation too",
        f"  memory       {cost.memory:8.3f} s   beside the products",
        f"  update       {cost.update:8.3f} s   weights and moments",
        f"  network      {cost.network:8.3f} s   {sent(plan) / 1e9:,.1f} GB received; "
        f"{cost.exposed:.3f} s not hidden",
        f"  in all       {cost.seconds:8.3f} s",
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
