"""FLOPs of the matrix products of a compiled program, read from XLA's text of it.

A TPU's compiler writes every product as a convolution, batch axes as windows that slide over
padding; what counts are the pairs of numbers that are multiplied, as in XLA's own cost analysis,
which counts the body of a loop once and so cannot be asked. Kernels are not looked into.
"""

import math
import re
from collections.abc import Mapping
from typing import NamedTuple

from llama_jax.plan.hlo import Instruction, read

_SHAPE = re.compile(r"[a-z]\w*\[([\d,<=]*)\]")
_LABELS = re.compile(r"dim_labels=(\w+)_(\w+)->(\w+)")
_GROUPS = re.compile(r"(?:feature|batch)_group_count=(\d+)")


class Axis(NamedTuple):
    """One spatial axis of a convolution's window, as XLA writes it.

    Attributes:
      size: places of the window.
      stride: places between two windows.
      low: padding before the input.
      every: places between two numbers of the input (`lhs_dilate`).
      step: places between two numbers of the window (`rhs_dilate`).
    """

    size: int
    stride: int = 1
    low: int = 0
    every: int = 1
    step: int = 1

    def pairs(self, length: int, out: int) -> int:
        """Pairs of a place of the output and one of the window that meet a number of the input."""
        reach = (length - 1) * self.every
        found = 0
        for place in range(out):
            start = place * self.stride - self.low
            at = range(start, start + self.size * self.step, self.step)
            found += sum(0 <= i <= reach and i % self.every == 0 for i in at)
        return found


def flops(text: str) -> float:
    """FLOPs of all products of a compiled program, of one device and one execution.

    Raises:
      ValueError: a text that is no program, or a product that was not understood.
    """
    program = read(text)
    total = 0.0
    for name, times in program.times().items():
        inside = program.computations[name]
        types = {it.name: it.type for it in inside}
        for it in inside:
            if it.op == "dot":
                total += times * _dot(it, types)
            elif it.op == "convolution":
                total += times * _convolution(it, types)
    return total


def kernels(text: str) -> int:
    """How often a compiled program calls a kernel written for a TPU."""
    program = read(text)
    return sum(
        times
        for name, times in program.times().items()
        for it in program.computations[name]
        if it.op == "custom-call" and 'custom_call_target="tpu_custom_call"' in it.rest
    )


def _shape(kind: str) -> list[int]:
    found = _SHAPE.search(kind)
    if found is None:
        raise ValueError(f"no shape in the type {kind[:100]!r} of a product")
    return [int(size.lstrip("<=")) for size in found[1].split(",") if size]


def _dot(it: Instruction, types: Mapping[str, str]) -> float:
    found = re.search(r"lhs_contracting_dims=\{([\d,]*)\}", it.rest)
    left = _shape(types[it.operands[0]])
    summed = [left[int(axis)] for axis in found[1].split(",") if axis] if found else []
    return 2.0 * math.prod(_shape(it.type)) * math.prod(summed)


def _convolution(it: Instruction, types: Mapping[str, str]) -> float:
    labels = _LABELS.search(it.rest)
    if labels is None:
        raise ValueError(f"convolution {it.name} has no dim_labels: {it.rest[:200]}")
    left, right = (_shape(types[operand]) for operand in it.operands)
    out = _shape(it.type)
    lengths = dict(zip(labels[1], left, strict=True))
    weights = dict(zip(labels[2], right, strict=True))
    places = dict(zip(labels[3], out, strict=True))
    pairs = [axis.pairs(lengths[str(i)], places[str(i)]) for i, axis in enumerate(_window(it.rest))]
    groups = math.prod(int(n) for n in _GROUPS.findall(it.rest))
    # Groups of features have their part of the input each, which the weight's `i` says already;
    # those of the batch share its places out.
    batches = lengths["b"] if "batch_group_count" not in it.rest else lengths["b"] // groups
    return 2.0 * batches * places["f"] * weights["i"] * math.prod(pairs)


def _window(rest: str) -> list[Axis]:
    found = re.search(r"window=\{([^}]*)\}", rest)
    if found is None:
        return []
    said = dict(part.split("=") for part in found[1].split())
    sizes = [int(n) for n in said["size"].split("x")]

    def numbers(name: str, default: int) -> list[int]:
        if name not in said:
            return [default] * len(sizes)
        return [int(part.split("_")[0]) for part in said[name].split("x")]

    columns = (
        sizes,
        numbers("stride", 1),
        numbers("pad", 0),
        numbers("lhs_dilate", 1),
        numbers("rhs_dilate", 1),
    )
    return [Axis(*row) for row in zip(*columns, strict=True)]
