"""A step's memory and traffic from shapes alone: what the search ranks by before it compiles.

Every figure is of one device. Weights are exact, by their letters. Activations of a language model
are those of a LLaMA block, as XLA keeps them under each remat policy; of any other model what its
traced step leaves for the backward pass. Compiled memory is what counts in the end.
"""

import dataclasses
import math
from dataclasses import dataclass, field
from typing import Any

import jax
import numpy as np

from llama_jax.axes import Rules, weight_sharding, weight_spec
from llama_jax.config import Run
from llama_jax.errors import UserError
from llama_jax.models.decoder import Decoder
from llama_jax.plan import network
from llama_jax.plan.activations import elements, experts_in, head_dim, model_width, stored
from llama_jax.plan.cost import Cost, Sent, of, updated
from llama_jax.plan.policies import parsed
from llama_jax.plan.program import (
    Step,
    changed,
    least,
    model_work,
    stacks,
    tokens,
    total_rows,
)
from llama_jax.plan.topology import Topology
from llama_jax.train.flops import Work
from llama_jax.trees import path_name

HALF, WHOLE = 2, 4  # bytes of bfloat16 and float32
_BOUNDS = ("none", "block")  # all that a pass makes, and the least that it leaves


@dataclass(frozen=True)
class Weight:
    """A parameter: its letters and sizes."""

    letters: str
    shape: tuple[int, ...]
    width: int = WHOLE  # bytes a number

    def ways(self, sizes: dict[str, int], rules: Rules, but: frozenset[str] = frozenset()) -> int:
        """Into how many parts a mesh splits it, not counting some axes; 0 if it cannot."""
        total = 1
        for length, part in zip(self.shape, weight_spec(self.letters, rules), strict=True):
            axes = (part,) if isinstance(part, str) else part or ()
            ways = math.prod(sizes.get(axis, 1) for axis in axes)
            if length % ways:
                return 0
            total *= math.prod(sizes.get(axis, 1) for axis in axes if axis not in but)
        return total


@dataclass(frozen=True)
class Shapes:
    """What the search knows of a run.

    Attributes:
      run: the Run; its mesh, remat, and batch are free.
      weights: all.
      moments: bytes of the optimizer for each byte of weights.
      update: FLOPs of the optimizer.
      row: FLOPs of a row beside them, done under each remat policy.
      model: FLOPs of a row of the model.
      tokens: tokens of a row, on average if streams differ.
      least: the fewest rows of a batch.
      leading: sizes, for these rows, of all fields that rows are split by.
      stored: bytes that a row leaves under each policy, if it is no language model; "none" is all
        that a pass makes, "block" what "offload" leaves on the device.
    """

    run: Run
    weights: tuple[Weight, ...]
    moments: float
    update: float
    row: dict[str, Work]
    model: float
    tokens: float
    least: int
    leading: frozenset[int]
    stored: dict[str, float]

    @classmethod
    def of(cls, run: Run, remats: tuple[str, ...]) -> "Shapes":
        """Traces a step of the fewest rows on one device, for each policy."""
        one = changed(run, mesh={}, remat=remats[0], batch=least(run))
        step, n = Step.of(one, jax.devices("cpu")[:1]), total_rows(one)
        steps = {r: dataclasses.replace(step, run=changed(one, remat=r)) for r in remats}
        update = step.update_work()
        work = {remat: other.work() for remat, other in steps.items()}
        row = {r: Work((all - update) / n, part / n) for r, (all, part) in work.items()}
        stored = {}
        if not isinstance(run.model, Decoder):
            more = {r: dataclasses.replace(step, run=changed(one, remat=r)) for r in _BOUNDS}
            stored = {r: other.residuals() / n for r, other in (steps | more).items()}
        leading = frozenset(f[0][0] for named in step.fields.values() for f in named.values())
        layout = step.layout
        leaves = jax.tree_util.tree_flatten_with_path(layout.abstract.params)[0]
        weights = [
            Weight(layout.letters[path_name(p)], x.shape, x.dtype.itemsize) for p, x in leaves
        ]
        held = [
            sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(tree))
            for tree in (layout.abstract.params, (layout.abstract.opt_state, layout.abstract.ema))
        ]
        moments, model = held[1] / held[0], model_work(one) / n
        each = tokens(one) / n
        return cls(run, tuple(weights), moments, update, row, model, each, n, leading, stored)

    def divide(self, rows: int, copies: int) -> bool:
        """Whether so many devices can share so many rows, and all that comes with them, evenly."""
        return all(n * rows % (self.least * copies) == 0 for n in self.leading)

    def even(self, copies: int) -> int:
        """The fewest rows that so many devices can share evenly."""
        every = range(self.least, self.least * copies + 1, self.least)
        return next(rows for rows in every if self.divide(rows, copies))


@dataclass(frozen=True)
class Guess:
    """A candidate and what it would take.

    Attributes:
      mesh: axis -> size.
      remat: policy.
      rows: rows of all devices together.
      hbm: bytes by part.
      cost: seconds.
      host: bytes in the host's memory by part.
    """

    mesh: dict[str, int]
    remat: str
    rows: int
    hbm: dict[str, float]
    cost: Cost
    host: dict[str, float] = field(default_factory=dict)

    @property
    def peak(self) -> float:
        """Bytes."""
        return sum(self.hbm.values())

    @property
    def held(self) -> float:
        """Bytes in the host's memory."""
        return sum(self.host.values())


class Layout:
    """A mesh on a topology: which weights lie where, and what its axes span."""

    def __init__(self, shapes: Shapes, topology: Topology, sizes: dict[str, int], mesh: Any):
        self.shapes, self.topology, self.sizes = shapes, topology, sizes
        self.run = changed(shapes.run, mesh=sizes)
        self.copies = math.prod(sizes.get(axis, 1) for axis in ("data", "fsdp", "expert", "stage"))
        rules, free = self.run.rules, frozenset({"fsdp"})
        self.held = self.gathered = 0.0  # bytes, and numbers that are gathered
        for weight in shapes.weights:
            size = math.prod(weight.shape)
            try:
                weight_sharding(weight.letters, weight.shape, mesh, rules)
            except ValueError as error:
                raise UserError(f"a weight of {shapes.run.name}: {error}") from None
            split = weight.ways(sizes, rules)
            self.held += weight.width * size / split
            if split != weight.ways(sizes, rules, free):
                self.gathered += size / weight.ways(sizes, rules, free)
        self.spans = {
            axis: self._span(mesh, (axis,)) for axis in ("fsdp", "data", "tensor", "expert")
        }

    def _span(self, mesh: Any, axes: tuple[str, ...]) -> network.Span:
        names = list(mesh.shape)
        at = tuple(slice(None) if name in axes else 0 for name in names)
        group = np.arange(mesh.size).reshape(mesh.devices.shape)[at].reshape(-1)
        devices = list(mesh.devices.flat)
        return network.span(self.topology, devices, dict(mesh.shape), tuple(group.tolist()))

    def _ways(self, letter: str) -> int:
        """Into how many parts the rules split a letter of activations."""
        part = dict(self.run.rules.activations).get(letter) or ()
        axes = (part,) if isinstance(part, str) else part
        return math.prod(self.sizes.get(axis, 1) for axis in axes)

    def seconds(self, kind: str, sent: float, axis: str) -> float:
        """Of a collective along a mesh axis."""
        if self.sizes.get(axis, 1) == 1:
            return 0.0
        return network.seconds(self.topology, kind, sent, self.spans[axis])

    def guess(self, remat: str, rows: int) -> Guess:
        """Memory and time with this policy and so many rows of all devices."""
        shapes, chips = self.shapes, self.topology.size
        tensor, context = self.sizes.get("tensor", 1), self.sizes.get("context", 1)
        here = rows / self.copies * shapes.tokens / context  # tokens of a device's own
        every = list(stacks(shapes.run.model).values())
        layers = sum(len(stack.pattern) * stack.repeats for stack in every)
        width = model_width(shapes.run.model)
        keys = offloaded = 0.0
        policy, names = parsed(remat)
        if shapes.stored:
            activations = shapes.stored[remat] * rows / self.copies
            made = shapes.stored["none"] * rows / self.copies
            if policy == "offload":
                stays = shapes.stored["block"] * rows / self.copies
                activations, offloaded = stays, max(activations - stays, 0.0)
        else:
            # Of what passes between blocks, a device holds this much of D.
            stack, own = every[0], width / self._ways("D")
            blocks = [elements(block, own, tensor) for block in stack.pattern]
            names = stack.saved if names is None else names
            saved = sum(stored(each, own, policy, names) for each in blocks)
            if policy == "offload":
                away = sum(each[name] for each in blocks for name in names)
                offloaded = stack.repeats * away * here * HALF
                # What the layers before and after hand to the link while one computes.
                saved += 2 * away / stack.repeats
            widest = max(each["all"] for each in blocks)
            keys = stack.repeats * sum(each["keys"] for each in blocks)
            activations = (stack.repeats * saved + widest * len(blocks)) * here * HALF
            activations += here * width * (WHOLE + WHOLE + HALF)  # the logits' chunks
            made = layers * widest * here * HALF
        hbm = {
            "weights": self.held,
            "optimizer": self.held * shapes.moments,
            "gradients": self.held,
            "activations": activations,
            "gathered": HALF * self.gathered / max(layers, 1),
        }
        again = 1 if policy in ("none", "dots") else 2
        total, part = shapes.row[remat]
        work = Work((total * rows + shapes.update) / chips, part * rows / chips)
        # Weights are gathered for each pass over a layer, gradients summed once.
        passes = (1 + again) * HALF * self.gathered
        weights = self.seconds("all-gather", passes, "fsdp")
        weights += self.seconds("reduce-scatter", HALF * self.gathered, "fsdp")
        weights += self.seconds("all-reduce", self.held, "data")
        sums = layers * 2 * (1 + again) * here * width * HALF
        activations = self.seconds("all-reduce", sums, "tensor")
        # Tokens are gathered for the experts of a device, and what they made is summed and split.
        routed = sum(stack.repeats * experts_in(stack.pattern) for stack in every)
        tokens = routed * (1 + again) * here * self.sizes.get("expert", 1) * width * HALF
        activations += self.seconds("all-gather", tokens, "expert")
        activations += self.seconds("reduce-scatter", tokens, "expert")
        # A ring hands keys and values on in the forward pass, with their gradients in the backward.
        hops = (4 + again) * (context - 1) * here * keys * HALF
        weights += hops / self.topology.chip.link
        moved = 2 * (passes + HALF * self.gathered)
        moved += (2 + again) * 2 * made
        cost = of(
            self.topology.chip,
            work,
            head_dim(shapes.run.model),
            shapes.model * rows / chips,
            shapes.tokens * rows / chips,
            updated(self.held, self.held * shapes.moments),
            moved,
            Sent(weights, activations, passes + HALF * self.gathered + 2 * sums + 2 * tokens),
            offloaded,
        )
        host = in_host(self.held * (1 + shapes.moments), offloaded)
        return Guess(self.sizes, remat, rows, hbm, cost, host)


def in_host(state: float, offloaded: float) -> dict[str, float]:
    """Bytes of the host's memory that a device takes, by part.

    Args:
      state: bytes of weights and moments, which a checkpoint copies there while it is written.
      offloaded: bytes of activations.
    """
    return {"offloaded": offloaded, "checkpoint": state}
