"""Candidates of the search: every mesh, policy and batch, guessed from shapes."""

import math
from collections.abc import Iterator
from typing import Any

from llama_jax.axes import ACROSS_SLICES
from llama_jax.config import Run
from llama_jax.errors import UserError
from llama_jax.plan.model import Guess, Layout, Shapes
from llama_jax.plan.program import changed
from llama_jax.plan.topology import Topology

# Rows of a device that shares them with no other.
ROWS = (1, 2, 3, 4, 5, 6, 8, 10, 12, 16, 24, 32, 48, 64)
# A guess of memory that is so much beyond what there is is not compiled.
SURELY = 1.05
# Plans so close are as fast: the one with fewer rows, or fewer axes, is taken.
ALIKE = 0.98


def fixed(mesh: dict[str, int], topology: Topology) -> dict[str, int]:
    """A mesh as asked for, its -1 filled in.

    Raises:
      UserError: it does not multiply to the chips.
    """
    sizes = {"data": 1} | mesh
    known = math.prod(n for n in sizes.values() if n > 0)
    if list(sizes.values()).count(-1) == 1 and topology.size % known == 0:
        sizes = {a: topology.size // known if n == -1 else n for a, n in sizes.items()}
    product = math.prod(sizes.values())
    if product != topology.size or min(sizes.values()) < 1:
        asked = ",".join(f"{a}={n}" for a, n in mesh.items())
        free = list(mesh.values()).count(-1)
        makes = f"leaves {free} sizes open" if free > 1 else f"multiplies to {known}"
        makes += " and what is left" if free == 1 else ""
        raise UserError(
            f"--mesh {asked} {makes}, {topology} has {topology.size} {topology.unit}s; "
            "give sizes whose product that is, or one -1"
        )
    if not crosses(sizes, topology):
        named = ", ".join(f"{axis}={sizes.get(axis, 1)}" for axis in ACROSS_SLICES)
        raise UserError(
            f"{topology} is {topology.islands} slices or nodes, and none of {named} is a multiple "
            f"of that; only these cross them, so give e.g. data={topology.islands}"
        )
    return sizes


def crosses(sizes: dict[str, int], topology: Topology) -> bool:
    """Whether one axis of the mesh can cross the slices, or nodes, as `make_mesh` lays it out."""
    return any(sizes.get(axis, 1) % topology.islands == 0 for axis in ACROSS_SLICES)


def meshes(topology: Topology, run: Run, shapes: Shapes) -> Iterator[dict[str, int]]:
    """The meshes that the weights and the sequence can be split over."""
    chips, islands = topology.size, topology.islands
    for tensor in _powers(min(chips, 16)):
        for context in _powers(min(chips // tensor, 8)):
            # A model of several sequences has no one length to split.
            if context > 1 and (shapes.stored or shapes.tokens % (2 * context)):
                continue
            left = chips // (tensor * context)
            if left * tensor * context != chips:
                continue
            # Between slices go sums of gradients alone; between nodes weights may go too.
            least = 1 if topology.chip.gpu else islands
            datas = {least, 2 * least, 4 * least, islands, left}
            for data in sorted(d for d in datas if left % d == 0):
                sizes = {"data": data, "fsdp": left // data, "context": context, "tensor": tensor}
                divided = all(weight.ways(sizes, run.rules) for weight in shapes.weights)
                if divided and crosses(sizes, topology):
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
        for batch in [rows] if rows else batches(shapes, layout.copies):
            if shapes.divide(batch, layout.copies):
                found += [layout.guess(one, batch) for one in ([remat] if remat else shapes.row)]
    return sorted(found, key=order)


def batches(shapes: Shapes, copies: int) -> list[int]:
    """Rows to try, if so many devices have rows of their own.

    A preset whose objectives compare rows was made for its batch: of that the least multiple.
    """
    if shapes.least == 1:
        return [n * copies for n in ROWS]
    return [shapes.even(copies)]


def order(guess: Guess) -> float:
    """Fast ones first; each axis of a mesh costs something that is not in the estimate."""
    return -guess.cost.rate * ALIKE ** sum(n > 1 for n in guess.mesh.values())


def frugal(found: list[Guess]) -> list[Guess]:
    """One candidate for each mesh and policy: the fewest rows that are about as fast as can be."""
    kept: dict[tuple[Any, ...], Guess] = {}
    fastest: dict[tuple[Any, ...], float] = {}
    for guess in found:
        key = (*guess.mesh.items(), guess.remat)
        fastest.setdefault(key, guess.cost.rate)
        if guess.cost.rate >= ALIKE * fastest[key]:
            kept[key] = min(guess, kept.get(key, guess), key=lambda g: g.rows)
    return sorted(kept.values(), key=order)


def axes(mesh: dict[str, int], between: str = " ") -> str:
    """The sizes above one: "fsdp=64 tensor=4"."""
    return between.join(f"{axis}={n}" for axis, n in mesh.items() if n > 1) or "data=1"


def name(guess: Any) -> str:
    """A guess or a plan in a few words: "fsdp=256 remat=block batch=1024"."""
    return f"{axes(guess.mesh)} remat={guess.remat} batch={guess.rows}"
