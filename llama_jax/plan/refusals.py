"""Why a plan does not do, and what to ask for instead."""

import math
from typing import Any

from llama_jax.chips import GIB, Chip
from llama_jax.config import Run
from llama_jax.plan.candidates import SURELY, axes, guesses, name
from llama_jax.plan.model import Guess, Shapes
from llama_jax.plan.policies import tried
from llama_jax.plan.topology import Topology


def biggest(parts: dict[str, float], peak: float, hbm: float) -> str:
    """What is needed of what there is, and the largest part of it."""
    part = max(parts, key=lambda k: parts[k])
    return (
        f"{peak / GIB:.1f} of {hbm / GIB:.1f} GiB a chip, {part} {parts[part] / GIB:.1f} GiB "
        "the largest"
    )


def no_room(host: dict[str, float], chip: Chip) -> str:
    """What is needed of the host's memory of what there is."""
    parts = ", ".join(f"{part} {size / GIB:.1f}" for part, size in host.items())
    return (
        f"{sum(host.values()) / GIB:.1f} of {chip.host_memory / GIB:.1f} GiB of the host's memory "
        f"({parts})"
    )


def too_big(topology: Topology, nearest: Guess, every: list[Guess]) -> str:
    """Of candidates none of which fits, what the smallest needs."""
    which = "" if len({name(g) for g in every}) == 1 else "the smallest, "
    return (
        f"nothing fits on {topology}: {which}{name(nearest)}, needs "
        f"{biggest(nearest.hbm, nearest.peak, topology.chip.hbm)}"
    )


def instead(
    topology: Topology,
    run: Run,
    devices: list[Any],
    mesh: dict[str, int] | None,
    remat: str | None,
    rows: int | None,
) -> str:
    """What to ask for instead: of the plans that fit by their shapes, the one most like it."""
    more = f"take more chips than {topology.chips} or a shorter --sequence"
    if not (mesh or remat or rows):
        return more
    shapes = Shapes.of(run, tried(topology.chip.gpu, run))
    every = guesses(topology, shapes, devices, mesh) if mesh else []
    every += guesses(topology, shapes, devices)
    fitting = [
        g
        for g in every
        if g.peak * SURELY <= topology.chip.hbm and g.held <= topology.chip.host_memory
    ]
    if not fitting:
        return more
    nearest = max(fitting, key=lambda g: (likeness(g, mesh, remat, rows), g.cost.rate))
    return (
        f"the nearest that fits: --mesh {axes(nearest.mesh, ',')} --remat {nearest.remat} "
        f"--batch {nearest.rows} ({nearest.peak / GIB:.1f} GiB by its shapes)"
    )


def likeness(guess: Guess, mesh: dict[str, int] | None, remat: str | None, rows: int | None) -> int:
    """How many of the things asked for a candidate has."""

    def above_one(sizes: dict[str, int]) -> dict[str, int]:
        return {axis: n for axis, n in sizes.items() if n > 1}

    return (
        (mesh is not None and above_one(guess.mesh) == above_one(mesh))
        + (guess.remat == remat)
        + (guess.rows == rows)
    )


def nothing(topology: Topology, shapes: Shapes, mesh: Any, rows: int | None) -> str:
    """Why there is no candidate at all."""
    if mesh and rows:
        copies = math.prod(mesh.get(axis, 1) for axis in ("data", "fsdp", "expert", "stage"))
        even = shapes.even(copies)
        return (
            f"--batch {rows} rows cannot be shared by the {copies} devices of the mesh that have "
            f"rows of their own; give a multiple of {even}, e.g. --batch {-(-rows // even) * even}"
        )
    if rows:
        return (
            f"--batch {rows} rows cannot be shared by any mesh of {topology.size} {topology.unit}s"
        )
    return (
        f"no mesh of the {topology.size} {topology.unit}s of {topology} divides {shapes.run.name}"
    )
