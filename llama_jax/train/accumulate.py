"""Micro-batches: the loss and the gradient of a whole batch in the memory of a part of it.

Objectives that sum over rows need only the counts of the whole batch first. Those that compare rows
(contrastive losses, matching with negatives from the whole batch) take three passes, for which what
is compared is cached (GradCache, Gao et al. 2021, arXiv:2101.06983):

    1  micro-batch by micro-batch   rows -> cache                          no gradients
    2  the whole batch              cache -> loss, d loss / d cache        heads and fusion alone
    3  micro-batch by micro-batch   rows -> cache, whose gradient is that of pass 2,
                                    and all other objectives, on the same towers

A cache holds one vector a row for ITC; for ITM it holds the towers' tokens, with their gradient
2 x rows x tokens x width numbers, because any of them may be drawn as a negative.
"""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from llama_jax.axes import activation_spec, row_ways
from llama_jax.errors import UserError
from llama_jax.objectives.base import Acts, applied, check, evaluated
from llama_jax.optim.precision import whole

Batch = dict[str, dict[str, Any]]
Sums = dict[str, tuple[jax.Array, jax.Array]]
# (params, batch, key) -> (total, name -> (sum, count)), float32 scalars.
Loss = Callable[[Any, Batch, jax.Array], tuple[jax.Array, Sums]]


def accumulated(loss: Loss, objectives: dict[str, Any], parts: int):
    """Value and gradient over `parts` micro-batches, equal to those of the whole batch.

    Args:
      loss: from `bind`; of contrastive objectives its `model` is read.
      objectives: by name.
      parts: micro-batches.
    """
    compared = {name: o for name, o in objectives.items() if getattr(o, "contrastive", False)}
    if not compared:
        return _independent(loss, objectives, parts)
    others = {name: o for name, o in objectives.items() if name not in compared}
    return _cached(loss.model, compared, others, parts)  # pyright: ignore[reportFunctionMemberAccess]


def _independent(loss: Loss, objectives: dict[str, Any], parts: int):
    """Sums over micro-batches, divided by the counts of the whole batch.

    A mean of means would weigh a token of a short micro-batch more.
    """

    def value_and_grad(params, batch, key):
        pieces = split(batch, parts), jax.random.split(key, parts)
        counts = counted(lambda piece: loss(params, *piece)[1], pieces)

        def share(params, piece):
            _, sums = loss(params, *piece)
            return _total(objectives, sums, counts), sums

        gradient = jax.value_and_grad(share, has_aux=True)
        return _added(gradient, params, pieces)

    return value_and_grad


def counted(sums: Callable[[Any], Sums], pieces: Any) -> dict[str, jax.Array]:
    """The counts of all micro-batches together.

    They depend on the batch alone, so XLA drops the network from this pass.
    """

    counts = jax.lax.map(lambda p: {name: count for name, (_, count) in sums(p).items()}, pieces)
    return {name: jnp.sum(count) for name, count in counts.items()}


def _cached(model: nn.Module, compared: dict[str, Any], others: dict[str, Any], parts: int):
    """The three passes."""
    wanted: dict[str, dict[str, bool]] = {}
    for objective in compared.values():
        names = wanted.setdefault(objective.on, {})
        for name, tokens in objective.compares.items():
            names[name] = names.get(name, False) or tokens
    # What layers sow is read in both passes: towers sow in pass 3, and fusion in pass 2.
    compared = compared | {name: o for name, o in others.items() if o.last}

    def passed(params, piece, objectives):
        """The cache of a micro-batch and the losses of rows apart.

        The towers come first, in one order: dropout's keys count the calls of a layer, and the
        passes 1 and 3 must drop the same.
        """
        batch, key = piece

        def run(model):
            acts = Acts(model, batch, key)
            cache = acts.cache(wanted)
            return cache, evaluated(objectives, acts)

        cache, found = applied(run, model)(params, key)
        return cache, sums_of(found)

    def compare(params, vectors, rows, batch, key, rest):
        """The losses of the whole batch from its cache, and the counts beside the `rest`."""

        def run(model):
            acts = Acts(model, batch, key, _with(rows, vectors), parts)
            return evaluated(compared, acts)

        sums = sums_of(applied(run, model)(params, key))
        counts = rest | {name: count + rest.get(name, 0) for name, (_, count) in sums.items()}
        return _total(compared, sums, counts), (sums, counts)

    def value_and_grad(params, batch, key):
        check(compared | others, batch)
        units = {stream: _units(fields) for stream, fields in batch.items()}
        pieces = split(batch, parts), jax.random.split(key, parts)

        rows = jax.lax.map(lambda piece: passed(params, piece, {})[0], pieces)
        rows = _by_stream(gather, rows, units)

        rest = counted(lambda piece: passed(params, piece, others)[1], pieces)
        both = jax.value_and_grad(compare, (0, 1), has_aux=True)
        (first, (sums, counts)), (grads, slopes) = both(
            params, _vectors(rows), rows, batch, key, rest
        )
        slopes = _by_stream(lambda x, n: deal(x, n, parts), slopes, units)

        def share(params, piece):
            *piece, slope = piece
            cache, sums = passed(params, piece, others)
            total = _total(others, sums, counts)
            # A number whose gradient in the cache is that of pass 2.
            pull = jax.tree.map(_dot, slope, _vectors(cache))
            return total + sum(jax.tree.leaves(pull)), (total, sums)

        def gradient(params, piece):
            (_, found), grads = jax.value_and_grad(share, has_aux=True)(params, piece)
            return found, grads

        (second, more), grads = _added(gradient, params, (*pieces, slopes), grads)
        for name in sums.keys() & more.keys():
            more[name] = jax.tree.map(jnp.add, sums[name], more[name])
        return (first + second, {**sums, **more}), grads

    return value_and_grad


def _added(gradient: Callable, params: Any, pieces: Any, grads: Any = None):
    """The sum of `gradient(params, piece)`, ((total, sums), gradients), over the pieces.

    `grads` is what the gradients are added to. Gradients in bfloat16 are added up in float32.
    """

    def add(carry, piece):
        return jax.tree.map(jnp.add, carry, gradient(params, piece)), None

    shapes = jax.eval_shape(gradient, params, jax.tree.map(lambda x: x[0], pieces))
    found, zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)
    begin = whole(zeros if grads is None else grads)
    return jax.lax.scan(add, (found, begin), pieces)[0]


def _total(objectives: dict[str, Any], sums: Sums, counts: dict[str, jax.Array]) -> jax.Array:
    """The weighted sum of the means."""
    total = jnp.zeros((), jnp.float32)
    for name, objective in objectives.items():
        total += objective.weight * sums[f"{name}/loss"][0] / jnp.maximum(counts[f"{name}/loss"], 1)
    return total


def sums_of(found: dict[str, Any]) -> Sums:
    """Sums and counts by "<objective>/loss" and "<objective>/<metric>"."""
    sums = {}
    for name, part in found.items():
        sums |= {f"{name}/loss": (part.sum, part.count)}
        sums |= {f"{name}/{metric}": value for metric, value in part.metrics.items()}
    return sums


# A cache is {stream: {modality: Tokens or Vectors}}; both have `x`, of which there are gradients.
def _vectors(cache: Any) -> Any:
    return {s: {name: kept.x for name, kept in named.items()} for s, named in cache.items()}


def _with(cache: Any, vectors: Any) -> Any:
    return {
        stream: {name: kept.with_x(vectors[stream][name]) for name, kept in named.items()}
        for stream, named in cache.items()
    }


def _by_stream(f: Callable, trees: dict[str, Any], units: dict[str, int]) -> dict[str, Any]:
    return {
        stream: jax.tree.map(lambda x, n=units[stream]: f(x, n), tree)
        for stream, tree in trees.items()
    }


def _dot(a: jax.Array, b: jax.Array) -> jax.Array:
    return jnp.sum(a.astype(jnp.float32) * b.astype(jnp.float32))


def split(batch: Batch, parts: int) -> Batch:
    """Every field as [parts, rows / parts, ...]; text rows stay with the image that they share.

    Raises:
      UserError: the rows of a stream cannot be divided so, or their parts not by the devices.
    """

    def one(stream: str, fields: dict[str, Any]) -> dict[str, Any]:
        units, ways = _units(fields), row_ways()
        if units % parts:
            raise UserError(
                f"accumulate={parts} does not divide the {units} rows or images of stream "
                f"{stream!r}; give --accumulate {_divisor(units, parts)} or another batch"
            )
        if units // parts % ways:
            raise UserError(
                f"accumulate={parts} leaves {units // parts} rows or images of stream {stream!r} "
                f"a micro-batch, which {ways} devices cannot share; give a smaller --accumulate "
                "or a larger batch"
            )
        return {name: deal(x, units, parts) for name, x in fields.items()}

    return {stream: one(stream, fields) for stream, fields in batch.items()}


def deal(x: jax.Array, units: int, parts: int) -> jax.Array:
    """[rows, ...] as [parts, rows / parts, ...], dealt out like cards.

    So each micro-batch has rows on every device. `units` rows or images belong together.
    """
    rows = x.reshape(units // parts, parts, x.shape[0] // units, *x.shape[1:])
    return jnp.swapaxes(rows, 0, 1).reshape(parts, -1, *x.shape[1:])


def gather(x: jax.Array, units: int) -> jax.Array:
    """[parts, rows / parts, ...] as [rows, ...] in the order before `deal`."""
    parts = x.shape[0]
    rows = x.reshape(parts, units // parts, -1, *x.shape[2:])
    rows = jnp.swapaxes(rows, 0, 1).reshape(-1, *x.shape[2:])
    return _split_by_row(rows)


def _units(fields: dict[str, Any]) -> int:
    return min(x.shape[0] for x in fields.values())


def _divisor(number: int, most: int) -> int:
    return next(n for n in range(min(number, most), 0, -1) if number % n == 0)


def _split_by_row(x: jax.Array) -> jax.Array:
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.size == 1:
        return x
    return jax.lax.with_sharding_constraint(x, activation_spec("B"))


def joined(batches: list[Batch]) -> Batch:
    """Several batches of the loader as one, rows behind rows (NumPy)."""
    if len(batches) == 1:
        return batches[0]
    return {
        stream: {name: np.concatenate([b[stream][name] for b in batches]) for name in fields}
        for stream, fields in batches[0].items()
    }
