"""How long a collective takes on the links that its group has.

A gather of V bytes over n chips (a reduce-scatter alike; an all-reduce is one of each) brings each
chip V (n - 1) / n bytes. On a torus they come over every axis that the group spans, from both sides
where the axis is closed to a ring ("How to Scale Your Model", chapter 3). What crosses slices or
nodes goes over adapters of their own, after (or before) the part inside.

The two devices of a TPU7x chip share its links: each brings a half of what both need, and they hand
each other the halves inside the chip.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from llama_jax.chips import DIE_TO_DIE
from llama_jax.plan.hlo import Collective
from llama_jax.plan.topology import Topology


@dataclass(frozen=True)
class Span:
    """What a group of chips spans.

    Attributes:
      extents: chips along each axis of the torus (of GPUs: of a node).
      slices: slices (nodes) over which it goes.
      axes: the axes of the mesh along which its members differ.
      each: devices of it on a chip.
    """

    extents: tuple[int, ...]
    slices: int
    axes: frozenset[str]
    each: int = 1

    @property
    def inside(self) -> int:
        """Chips of it in one slice."""
        return math.prod(self.extents)


def span(topology: Topology, devices: Sequence[Any], mesh: dict[str, int], group) -> Span:
    """The span of a group of partitions.

    Args:
      topology: how the devices are joined.
      devices: in the order of the partitions.
      mesh: axis -> size, in their order.
      group: partitions.
    """
    where = np.array(np.unravel_index(np.array(group), tuple(mesh.values())))
    axes = frozenset(a for a, row in zip(mesh, where, strict=True) if len(set(row.tolist())) > 1)
    chips = [devices[i] for i in group]
    if topology.chip.gpu:
        nodes = {chip.id // topology.shape[1] for chip in chips}
        return Span((len(chips) // len(nodes),), len(nodes), axes)
    at_slice = [getattr(chip, "slice_index", 0) or 0 for chip in chips]
    slices = set(at_slice)
    coords = np.array([chip.coords for chip in chips])
    seen = [len(set(column.tolist())) for column in coords.T[: len(topology.shape)]]
    each = len(chips) // len({(s, *at) for s, at in zip(at_slice, coords.tolist(), strict=True)})
    inside = len(chips) // len(slices) // each
    if math.prod(seen) != inside:  # no box: as if it were a line through its chips
        seen = [inside]
    return Span(tuple(seen), len(slices), axes, each)


def seconds(topology: Topology, kind: str, sent: float, there: Span) -> float:
    """The time of one collective alone on the links.

    Args:
      topology: how the links go.
      kind: which collective it is.
      sent: bytes of a device: a gather's result, the operand of the others.
      there: the span of its group.
    """
    chip, inside = topology.chip, there.inside
    if kind == "collective-permute":  # to a neighbour
        return sent / (chip.dcn if there.slices > 1 else chip.link / chip.devices)
    if kind in ("all-to-all", "ragged-all-to-all"):
        return _everyone(topology, sent, there)
    passes = 2 if kind == "all-reduce" else 1
    # What of a chip's links a device has to itself, and what of the bytes it brings over them.
    link, part = chip.link / chip.devices, sent / there.each
    rate = sum(link * _sides(topology, n) for n in there.extents if n > 1)
    within = part * (inside - 1) / inside / rate if rate else 0.0
    handed = (sent - part) / (DIE_TO_DIE * chip.link)
    # Each device of a slice takes its own part across.
    across = part / inside * (there.slices - 1) / there.slices / chip.dcn
    if chip.gpu:  # NVLink and the adapters work at once
        return passes * max(within, across)
    return passes * (within + handed + across)


def _sides(topology: Topology, extent: int) -> int:
    """From how many sides a chip receives along an axis of the torus."""
    chip = topology.chip
    if chip.gpu:
        return 1
    closed = extent in topology.shape and extent % chip.wraps == 0
    if len(topology.shape) == 3:  # optical switches join whole cubes
        closed = closed and all(n % chip.wraps == 0 for n in topology.shape)
    return 2 if closed and extent > 2 else 1


def _everyone(topology: Topology, sent: float, there: Span) -> float:
    """An all-to-all: over a ring of n a byte travels n / 4 hops, over a line up to n / 2."""
    chip, total = topology.chip, there.inside * there.slices * there.each
    if chip.gpu:
        outside = sent * (there.slices - 1) / there.slices / chip.dcn
        return max(sent * (total - 1) / total / chip.link, outside)
    hops = [n / (8 if _sides(topology, n) == 2 else 4) for n in there.extents if n > 1]
    within = sent * max(hops, default=0.0) / (chip.link / chip.devices)
    return within + sent * (there.slices - 1) / there.slices / chip.dcn


def total(
    topology: Topology, mesh: Any, sent: Sequence[Collective]
) -> list[tuple[Collective, Span, float]]:
    """Every collective with its span and its seconds a step."""
    devices = list(mesh.devices.flat)
    sizes = dict(mesh.shape)
    known: dict[tuple[int, ...], Span] = {}
    found = []
    for one in sent:
        if one.group not in known:
            known[one.group] = span(topology, devices, sizes, one.group)
        there = known[one.group]
        alone = one.times * seconds(topology, one.kind, one.bytes, there)
        found.append((one, there, alone * _both_ways(one, sent)))
    return found


def _both_ways(one: Collective, sent: Sequence[Collective]) -> float:
    """The share of its time that a hop adds: rings in both directions use links of their own."""
    if one.kind != "collective-permute":
        return 1.0
    ways: dict[tuple[int, ...], float] = {}
    for other in sent:
        if other.kind == one.kind and set(other.group) == set(one.group):
            ways[other.group[:2]] = ways.get(other.group[:2], 0.0) + other.bytes * other.times
    return max(ways.values()) / sum(ways.values())
