"""A stack cut into stages: each device of the mesh axis of L has some layers; rows go through.

The rows of a batch are dealt into micro-batches. At every tick each stage takes what the stage
before gave, and hands its own result on; in s + m - 1 ticks m micro-batches pass s stages (GPipe,
Huang et al. 2019, arXiv:1811.06965). For s = 3 and m = 4, with the micro-batch at each place:

    tick        0  1  2  3  4  5
    stage 0     0  1  2  3  .  .
    stage 1     .  0  1  2  3  .        the dots are the bubble: (s - 1) / (m + s - 1) of the time
    stage 2     .  .  0  1  2  3

It is a loop over ticks with one `ppermute`, so its gradient is the same pipeline backwards. Only
the axis of the stages is split by hand: within a stage the other axes are the partitioner's, and
a layer is the same code as without stages. Equal to the scan but for dropout, of which every
micro-batch draws its own.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec
from jaxtyping import Array, Float

from llama_jax import axes
from llama_jax.errors import UserError
from llama_jax.kernels import backends
from llama_jax.kernels.target import platform
from llama_jax.layers.inputs import Inputs, Memory

MOST_A_STAGE = 4  # micro-batches chosen by themselves: a bubble of about a fifth

# (weights of one layer, x, inputs, memory, key or None) -> (x, what else is wanted)
Layer = Callable[[Any, jax.Array, Inputs, Memory | None, Any], tuple[jax.Array, Any]]


def bubble(stages: int, microbatches: int) -> float:
    """The share of the time in which a stage has nothing to do."""
    return (stages - 1) / (microbatches + stages - 1)


def run(
    layer: Layer,
    weights: Any,
    x: Float[Array, "B T D"],
    inputs: Inputs,
    memory: Memory | None = None,
    key: Any = None,
) -> tuple[Float[Array, "B T D"], Any]:
    """All layers, one after another, each on the devices that hold it.

    Args:
      layer: what is done with the weights of one.
      weights: arrays [L, ...] whose first axis is split over the stages.
      x: what goes in.
      inputs: of a call without a cache.
      memory: what its rows read, or None.
      key: of dropout; every micro-batch and layer gets one of its own, by `key_of`.

    Returns:
      x, and what else the layers gave: [L, m, ...], of every layer and micro-batch.

    Raises:
      UserError: layers or rows that do not divide.
    """
    rows, layers = x.shape[0], jax.tree.leaves(weights)[0].shape[0]
    deal = Deal.of(rows, layers)
    axis, stages, count = deal.axis, deal.stages, deal.stages * deal.each
    idle = f"{100 * bubble(stages, count):.0f} % bubble"
    how = f"{stages} stages x {count} micro-batches, {idle}"
    backends.note("pipeline", f"x{list(x.shape)}, {layers} periods", how)
    # What belongs to rows travels with them; a bias belongs to all.
    told, tree = jax.tree.flatten((replace(inputs, bias=None), memory))
    travels = [a.shape[0] == rows for a in told]
    split = [a for a, its in zip(told, travels, strict=True) if its]
    shared = [a for a, its in zip(told, travels, strict=True) if not its]
    mine, all_ = PartitionSpec(axis), PartitionSpec()

    def joined(split, shared, bias):
        both = {True: iter(split), False: iter(shared)}
        inputs, memory = jax.tree.unflatten(tree, [next(both[its]) for its in travels])
        return replace(inputs, bias=bias), memory

    def one(weights, parts, shared, bias, key):
        def stage(weights, x, split, key):
            return layer(weights, x, *joined(split, shared, bias), key)

        with axes.within(axis):
            parts = jax.tree.map(lambda a: _gathered(a, axis), parts)
            out, more = _ticks(stage, weights, parts, key, axis, stages)
            # To each stage its part of what the last one has.
            out = out.reshape(stages, -1, *out.shape[1:])
            return jax.lax.all_to_all(out, axis, 0, 0)[-1], more

    out, more = jax.shard_map(
        one,
        in_specs=(mine, mine, all_, all_, all_),
        out_specs=(mine, mine),
        axis_names={axis},
        check_vma=False,
    )(weights, jax.tree.map(deal.out, (x, split)), shared, inputs.bias, key)
    return axes.shard(deal.back(out), "BTD"), more


def _ticks(
    layer: Callable[..., Any], weights: Any, parts: Any, key: Any, axis: str, stages: int
) -> tuple[jax.Array, Any]:
    """What this stage gave, [m, rows, T, D]; the last stage's is the result.

    And what else its layers gave, [depth, m, ...].
    """
    first = parts[0][0]
    count = parts[0].shape[0]
    here = jax.lax.axis_index(axis)
    way = [(i, (i + 1) % stages) for i in range(stages)]
    depth = jax.tree.leaves(weights)[0].shape[0]

    def stage(x, split, part):
        def body(x, named):
            number, w = named
            k = None if key is None else key_of(key, part, here * depth + number)
            return layer(w, x, split, k)

        return jax.lax.scan(body, x, (jnp.arange(depth), weights))

    def tick(before, time):
        # In the bubble a stage computes something that nobody reads, on rows that there are.
        part = jnp.clip(time - here, 0, count - 1)
        x, mine = jax.tree.map(lambda a: jax.lax.dynamic_index_in_dim(a, part, 0, False), parts)
        y, more = stage(jnp.where(here == 0, x, before), mine, part)
        return jax.lax.ppermute(y, axis, way), (y, more)

    _, (ys, more) = jax.lax.scan(tick, first, jnp.arange(count + stages - 1))

    def worked(a):  # [ticks, depth, ...]: those of the bubble left out
        return jnp.swapaxes(jax.lax.dynamic_slice_in_dim(a, here, count), 0, 1)

    return ys[stages - 1 :], jax.tree.map(worked, more)


def _gathered(a: jax.Array, axis: str) -> jax.Array:
    """The parts of all stages, in each of them."""
    if a.dtype == jnp.bfloat16 and platform() == "cpu":
        # Its gradient is a sum over devices, and XLA on a CPU dies of one in bfloat16 (jax 0.10.2).
        return jax.lax.all_gather(a.astype(jnp.float32), axis, tiled=True).astype(a.dtype)
    return jax.lax.all_gather(a, axis, tiled=True)


@dataclass(frozen=True)
class Deal:
    """How rows become micro-batches, so that no row leaves its device.

    Rows are split over the stages last: each stage begins with a part of the micro-batches, and
    each micro-batch has rows on all devices of a stage.

    Attributes:
      axis: of the stages.
      stages: s.
      others: the other mesh axes that split rows.
      ways: into how many parts these do.
      each: micro-batches that a stage begins with, m / s.
    """

    axis: str
    stages: int
    others: tuple[str, ...]
    ways: int
    each: int

    @classmethod
    def of(cls, rows: int, layers: int) -> "Deal":
        """The deal of so many rows to so many layers, by the rules and the mesh that are set.

        Raises:
          UserError: layers, rows, micro-batches and devices do not divide.
        """
        axis, stages = axes.stages()
        if layers % stages:
            raise UserError(
                f"axis L: a stack of {layers} periods cannot be cut into {stages} equal stages; "
                f"change its repeats, or --mesh.{axis}"
            )
        mesh, count = jax.sharding.get_abstract_mesh(), axes.microbatches()
        others = tuple(a for a in axes.axes_of("B") if a != axis)
        ways = math.prod(mesh.shape[a] for a in others)
        if count % stages:
            raise UserError(
                f"{count} micro-batches are not a multiple of the {stages} stages; give "
                f"--rules.microbatches {-(-count // stages) * stages}, or 0 to have them chosen"
            )
        least = (count or stages) * ways
        if rows % least:
            what = f"{count} micro-batches" if count else f"{stages} stages"
            raise UserError(
                f"axis B: {rows} rows cannot be dealt into {what} over {ways} devices each; "
                f"give a batch that is a multiple of {least}, or another --rules.microbatches"
            )
        share = rows // (stages * ways)
        most = max(k for k in range(1, MOST_A_STAGE + 1) if share % k == 0)
        return cls(axis, stages, others, ways, count // stages or most)

    def out(self, a: jax.Array) -> jax.Array:
        """[B, ...] to [m, B / m, ...]."""
        parts = a.reshape(self.ways, self.stages * self.each, -1, *a.shape[1:])
        parts = jnp.swapaxes(parts, 0, 1).reshape(self.stages * self.each, -1, *a.shape[1:])
        return jax.lax.with_sharding_constraint(parts, PartitionSpec(self.axis, self.others))

    def back(self, a: jax.Array) -> jax.Array:
        """[m, B / m, ...] to [B, ...], in the order of before."""
        a = jax.lax.with_sharding_constraint(a, PartitionSpec(self.axis, self.others))
        parts = a.reshape(a.shape[0], self.ways, -1, *a.shape[2:])
        return jnp.swapaxes(parts, 0, 1).reshape(-1, *a.shape[2:])


def key_of(key: Any, part: Any, number: Any) -> Any:
    """The key of one layer's dropout in one micro-batch."""
    return jax.random.fold_in(jax.random.fold_in(key, part), number)
