"""What a compiled program sends and how often, read from XLA's text of it.

XLA's own cost analysis counts the body of a loop once. Here the text is read as computations that
call each other; a `while` calls its body as often as its trip count says, which XLA writes down or
which is the constant that its condition compares with.
"""

import math
import re
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

COLLECTIVES = (
    "all-gather",
    "all-reduce",
    "reduce-scatter",
    "all-to-all",
    "collective-permute",
    "ragged-all-to-all",
    "collective-broadcast",
)
WIDTHS = {"pred": 1, "s4": 1, "u4": 1, "c64": 8, "c128": 16}

_COMPUTATION = re.compile(r"^(?:ENTRY )?%?([\w.\-]+) (?:\(.*)?.*\{\s*$")
_NAMED = re.compile(r"^\s+(?:ROOT )?%?([\w.\-]+) = ")
_CALLED = re.compile(
    r"(?:calls|to_apply|called_computations|branch_computations|true_computation|"
    r"false_computation)=(\{[^}]*\}|%?[\w.\-]+)"
)
_ARRAY = re.compile(r"([a-z]\w*)\[([\d,<=]*)\]")
_END = re.compile(r"\}(?: // .*)?\s*$")
# What a plan counts: an instruction of these that is left unread would be time that is left out.
COUNTED = (*COLLECTIVES, "dot", "convolution")
_COUNTED = re.compile(rf"\s+(?:ROOT )?%?[\w.\-]+ = .*?\s(?:{'|'.join(COUNTED)})(?:-start)?\(")


class Instruction(NamedTuple):
    """One line of a computation.

    Attributes:
      name: what its result is called.
      type: the text of its result's type.
      op: "fusion", "all-gather-start", ...
      operands: names.
      rest: what follows the operands.
    """

    name: str
    type: str
    op: str
    operands: tuple[str, ...]
    rest: str


class Collective(NamedTuple):
    """One collective of a program.

    Attributes:
      kind: "all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute", ...
      bytes: what one device moves, an execution: a gather's result, the operand of the others.
      group: partitions of one group, in order; every group of it looks alike.
      times: executions a step.
    """

    kind: str
    bytes: int
    group: tuple[int, ...]
    times: int


@dataclass
class Program:
    """A module's computations by name, and its entry."""

    computations: dict[str, list[Instruction]] = field(default_factory=dict)
    entry: str = ""

    def times(self) -> dict[str, int]:
        """How often each computation runs in a step."""
        found: dict[str, int] = {}

        def visit(name: str, times: int) -> None:
            found[name] = found.get(name, 0) + times
            for instruction in self.computations[name]:
                for called, more in self._calls(instruction):
                    visit(called, times * more)

        visit(self.entry, 1)
        return found

    def _calls(self, it: Instruction) -> list[tuple[str, int]]:
        if it.op == "while":
            body, condition = (re.search(rf"{what}=%?([\w.\-]+)", it.rest) for what in _LOOP)
            assert body is not None and condition is not None, it.rest[:200]
            return [(body[1], self._trips(it, condition[1]))]
        # What is applied to two numbers at a time is no program.
        applied = it.op.removesuffix("-start") in (*COLLECTIVES, "reduce", "sort", "scatter")
        if applied or it.op in ("reduce-window", "select-and-scatter", "map"):
            return []
        names = [n for found in _CALLED.findall(it.rest) for n in re.findall(r"[\w.\-]+", found)]
        return [(name, 1) for name in names if name in self.computations]

    def _trips(self, it: Instruction, condition: str) -> int:
        known = re.search(r'known_trip_count"?:\s*\{"?n"?:\s*"?(\d+)', it.rest)
        if known:
            return int(known[1])
        inside = self.computations[condition]
        constants = {
            i.name: int(i.operands[0]) for i in inside if i.op == "constant" and _number(i)
        }
        compared = [c for i in inside if i.op in ("compare", "fusion") for c in i.operands]
        bounds = [constants[name] for name in compared if name in constants]
        if len(bounds) != 1:
            raise ValueError(f"no trip count of {it.name}: condition {condition} compares {bounds}")
        return bounds[0]


_LOOP = ("body", "condition")


def _number(it: Instruction) -> bool:
    return len(it.operands) == 1 and it.operands[0].isdigit()


def read(text: str) -> Program:
    """The computations of a module from its text.

    Raises:
      ValueError: there is no entry, or a product or a collective of the text was not read.
    """
    program, here, said = Program(), None, 0
    for line in text.splitlines():
        said += _COUNTED.match(line) is not None
        if line[:1] in ("%", "E") and line.rstrip().endswith("{"):
            found = _COMPUTATION.match(line)
            assert found is not None, line[:200]
            here = program.computations[found[1]] = []
            if line.startswith("ENTRY"):
                program.entry = found[1]
        elif _END.match(line):  # a kernel's attributes have lines that begin so and go on
            here = None
        elif here is not None and (named := _NAMED.match(line)):
            here.append(_instruction(named[1], line[named.end() :]))
    if not program.entry:
        raise ValueError("no ENTRY computation in the text of the program")
    every = (it for inside in program.computations.values() for it in inside)
    was_read = sum(it.op.removesuffix("-start") in COUNTED for it in every)
    if was_read != said:
        raise ValueError(
            f"read {was_read} of {said} products and collectives of the program; XLA's text has "
            "changed: please report it with your versions of jax and jaxlib"
        )
    return program


def _instruction(name: str, text: str) -> Instruction:
    end = _closing(text, 0) if text.startswith("(") else text.index(" ")
    kind, text = text[:end], text[end:].lstrip()
    start = text.index("(")
    end = _closing(text, start)
    inside = re.sub(r"/\*.*?\*/", "", text[start + 1 : end - 1])
    # An operand may stand with its type; its name comes last.
    operands = tuple(p.split()[-1].lstrip("%") for p in _split(inside) if p.strip())
    return Instruction(name, kind, text[:start], operands, text[end:])


def _closing(text: str, start: int) -> int:
    """Behind the parenthesis that closes the one at `start`."""
    depth = 0
    for i in range(start, len(text)):
        depth += (text[i] == "(") - (text[i] == ")")
        if depth == 0:
            return i + 1
    raise ValueError(f"no closing parenthesis: {text[start : start + 200]}")


def _split(text: str) -> list[str]:
    """At the commas outside of brackets."""
    parts, depth, last = [], 0, 0
    for i, letter in enumerate(text):
        depth += (letter in "([{") - (letter in ")]}")
        if letter == "," and depth == 0:
            parts.append(text[last:i])
            last = i + 1
    return [*parts, text[last:]]


def size(kind: str) -> int:
    """Bytes of a type, of all its parts if it is a tuple."""
    total = 0
    for dtype, dims in _ARRAY.findall(re.sub(r"\{[^}]*\}", "", kind)):
        bits = re.search(r"\d+", dtype)
        width = WIDTHS.get(dtype, int(bits[0]) // 8 if bits else 0)
        total += width * math.prod(int(d.lstrip("<=")) for d in dims.split(",") if d)
    return total


def collectives(text: str, devices: int) -> list[Collective]:
    """Every collective of a compiled program of so many devices, in the order of its text."""
    program = read(text)
    found = []
    for name, times in program.times().items():
        inside = program.computations[name]
        types = {it.name: it.type for it in inside}
        for it in inside:
            kind = it.op.removesuffix("-start")
            if kind not in COLLECTIVES:
                continue
            group = _group(it, devices)
            sent = sum(size(types[operand]) for operand in it.operands)
            # A TPU sums and keeps its share in one fusion around an all-reduce.
            if kind == "all-reduce" and "all-reduce-scatter" in name:
                kind = "reduce-scatter"
            if kind == "all-gather":
                sent *= len(group)
            if len(group) > 1 and sent:
                found.append(Collective(kind, sent, group, times))
    return found


def _group(it: Instruction, devices: int) -> tuple[int, ...]:
    """The partitions of the first group: a list, an iota with a transpose, or axes of a mesh."""
    everyone = tuple(range(devices))
    if "source_target_pairs=" in it.rest:
        pairs = re.search(r"source_target_pairs=\{(\{.*?\})\}", it.rest)
        numbers = re.findall(r"\d+", pairs[1]) if pairs else []
        ring = {int(a): int(b) for a, b in zip(numbers[::2], numbers[1::2], strict=True)}
        return _cycle(ring)
    if listed := re.search(r"replica_groups=\{\{([\d,]+)\}", it.rest):
        return tuple(int(n) for n in listed[1].split(","))
    iota = re.search(r"replica_groups=\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?", it.rest)
    if iota:
        shape, dims = (tuple(map(int, iota[i].split(","))) for i in (1, 2))
        order = tuple(map(int, iota[3].split(","))) if iota[3] else tuple(range(len(dims)))
        rows = np.arange(math.prod(dims)).reshape(dims).transpose(order).reshape(shape)
        return tuple(int(n) for n in rows[0])
    mesh = re.search(
        r"replica_groups=mesh\[(.*?)\](?:<=\[.*?\](?:T\(.*?\))?)?,? ?\{(.*?)\}", it.rest
    )
    if mesh:
        sizes = {a: int(n) for a, n in re.findall(r"'([^']+)'=(\d+)", mesh[1])}
        axes = re.findall(r"'([^']+)'", mesh[2])
        grid = np.arange(math.prod(sizes.values())).reshape(tuple(sizes.values()))
        at = tuple(slice(None) if axis in axes else 0 for axis in sizes)
        return tuple(int(n) for n in grid[at].reshape(-1))
    return everyone


def _cycle(ring: dict[int, int]) -> tuple[int, ...]:
    """Whom the first sender reaches, hop by hop."""
    if not ring:
        return ()
    first = here = min(ring)
    found = [first]
    while (here := ring.get(here, first)) not in found:
        found.append(here)
    return tuple(found)
