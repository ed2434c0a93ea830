"""The one step for any mix of objectives; on a first reading go straight to `train_step`."""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh, NamedSharding

from llama_jax.axes import Rules, activation_spec
from llama_jax.errors import UserError
from llama_jax.train.state import Plan, TrainState

Batch = dict[str, dict[str, Any]]
Sums = dict[str, tuple[jax.Array, jax.Array]]
# (params, batch, key) -> (total, name -> (sum, count)), float32 scalars.
Loss = Callable[[Any, Batch, jax.Array], tuple[jax.Array, Sums]]


def make_train_step(
    plan: Plan, loss: Loss, rate: optax.Schedule, objectives: dict[str, Any], accumulate: int = 1
):
    """The jitted `(state, batch) -> (state, metrics)`; the state given is donated.

    Args:
      plan: shapes, shardings and optimizer of the state.
      loss: from `bind`.
      rate: step -> learning rate, for the metrics (the optimizer has it too).
      objectives: by name, with `weight`; asked whether they are `contrastive` if micro-batches are
        made.
      accumulate: micro-batches a step.

    Returns:
      A function whose metrics are float32 scalars on the device: `loss`, every name of the
      objectives as sum / count, `grad_norm` (before clipping), `rate`, `skipped` (steps so far) and
      `skipped_in_row`.

    Raises:
      UserError: micro-batches with a contrastive objective.
    """
    gradient = jax.value_and_grad(loss, has_aux=True)
    if accumulate > 1:
        gradient = accumulated(loss, objectives, accumulate)

    def train_step(state: TrainState, batch: Batch) -> tuple[TrainState, dict[str, jax.Array]]:
        key = jax.random.fold_in(jax.random.wrap_key_data(state.key), state.step)
        (total, sums), grads = gradient(state.params, batch, key)
        grad_norm = optax.tree.norm(grads)
        updates, opt_state = plan.transform.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)

        # One NaN costs one step. The old trees are chosen, not multiplied by 0, which would keep a
        # NaN; a norm that overflows (a gradient of 1e30) counts as not finite.
        good = jnp.isfinite(total) & jnp.isfinite(grad_norm)
        params, opt_state = jax.tree.map(
            lambda new, old: jnp.where(good, new, old),
            (params, opt_state),
            (state.params, state.opt_state),
        )
        bad = 1 - good.astype(jnp.int32)
        new = TrainState(
            step=state.step + 1,
            skipped=state.skipped + bad,
            skipped_in_row=(state.skipped_in_row + bad) * bad,
            params=params,
            opt_state=opt_state,
            key=state.key,
        )
        metrics = {"loss": total} | means(sums)
        # optax counts the steps it took, so its schedule stands still in a skipped one.
        metrics |= {
            "grad_norm": grad_norm,
            "rate": jnp.asarray(rate(state.step - state.skipped), jnp.float32),
        }
        metrics |= {"skipped": new.skipped, "skipped_in_row": new.skipped_in_row}
        return new, metrics

    return jax.jit(train_step, donate_argnums=0, out_shardings=(plan.shardings, None))


def means(sums: Sums) -> dict[str, jax.Array]:
    """sum / count of every entry, NaN where nothing was counted."""
    return {name: total / count for name, (total, count) in sums.items()}


def bind(model: nn.Module, losses: Callable) -> Loss:
    """`losses(objectives)`, a function over a bound module, as a function of parameters.

    Its sums are called "<objective>/loss" and "<objective>/<metric>".
    """

    def loss(params, batch, key):
        total, found = nn.apply(losses, model)(
            {"params": params}, batch, key, rngs={"dropout": key}
        )
        sums = {}
        for name, part in found.items():
            sums |= {f"{name}/loss": (part.sum, part.count)}
            sums |= {f"{name}/{metric}": value for metric, value in part.metrics.items()}
        return total, sums

    return loss


def initializer(
    model: nn.Module, losses: Callable, fields: dict[str, Any]
) -> Callable[[jax.Array], Any]:
    """key -> boxed parameters: exactly those that the losses use on such a batch.

    Args:
      model: the unbound module.
      losses: `losses(objectives)`.
      fields: (shape, dtype) of every field of the batch, by stream and name.
    """

    def init(key):
        batch = {
            stream: {name: jnp.zeros(*field) for name, field in named.items()}
            for stream, named in fields.items()
        }
        return nn.init(losses, model)({"params": key, "dropout": key}, batch, key)["params"]

    return init


def accumulated(loss: Loss, objectives: dict[str, Any], parts: int):
    """Value and gradient over `parts` micro-batches, equal to those of the whole batch.

    A mean of means would weigh a token of a short micro-batch more. So the counts of the whole
    batch come first (they depend on the batch alone, and XLA drops the rest of that pass), then the
    gradients of sum / count are added up.

    Raises:
      UserError: an objective whose rows see each other (`contrastive`).
    """
    for name, objective in objectives.items():
        if getattr(objective, "contrastive", False):
            raise UserError(
                f"objective {name!r} compares the rows of a batch, so accumulate={parts} would "
                "give it "
                "fewer negatives; use accumulate=1 and a smaller batch, or more devices"
            )

    def value_and_grad(params, batch, key):
        pieces = split(batch, parts), jax.random.split(key, parts)
        counts = jax.lax.map(
            lambda piece: {k: count for k, (_, count) in loss(params, *piece)[1].items()}, pieces
        )
        counts = {name: jnp.maximum(jnp.sum(count), 1) for name, count in counts.items()}

        def share(params, piece):
            _, sums = loss(params, *piece)
            total = sum(
                o.weight * sums[f"{n}/loss"][0] / counts[f"{n}/loss"] for n, o in objectives.items()
            )
            return total, sums

        def add(carry, piece):
            return jax.tree.map(
                jnp.add, carry, jax.value_and_grad(share, has_aux=True)(params, piece)
            ), None

        first = jax.tree.map(lambda x: x[0], pieces)
        shapes = jax.eval_shape(jax.value_and_grad(share, has_aux=True), params, first)
        return jax.lax.scan(
            add, jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes), pieces
        )[0]

    return value_and_grad


def split(batch: Batch, parts: int) -> Batch:
    """Every field as [parts, rows / parts, ...]; text rows stay with the image that they share.

    Rows are dealt out like cards, so that each micro-batch has rows on every device.
    """

    def one(stream: str, fields: dict[str, Any]) -> dict[str, Any]:
        units = min(x.shape[0] for x in fields.values())
        if units % parts:
            raise UserError(
                f"accumulate={parts} does not divide the {units} rows or images of stream "
                f"{stream!r}"
            )

        def deal(x):
            rows = x.reshape(units // parts, parts, x.shape[0] // units, *x.shape[1:])
            return jnp.swapaxes(rows, 0, 1).reshape(parts, -1, *x.shape[1:])

        return {name: deal(x) for name, x in fields.items()}

    return {stream: one(stream, fields) for stream, fields in batch.items()}


def check_rows(fields: dict[str, Any], mesh: Mesh, rules: Rules) -> None:
    """Checks that all devices have something to do, and an equal share of the rows.

    Args:
      fields: (shape, dtype) of every field of the batch, by stream and name.
      mesh: of the run.
      rules: of the run.

    Raises:
      UserError: a mesh axis over which nothing is split, or rows that cannot be shared.
    """
    for axis, size in mesh.shape.items():
        if size > 1 and axis not in rules.axes:
            raise UserError(
                f"the mesh has {axis}={size} and the rules split nothing over {axis!r}, so these "
                f"devices would all compute the same; give --mesh.{axis} 1, or rules that name it"
            )
    ways = mesh.size // _by_row(mesh, rules).shard_shape((mesh.size,))[0]
    for stream, named in fields.items():
        for name, (shape, _) in named.items():
            if shape[0] % ways:
                raise UserError(
                    f"axis B: stream {stream!r} has {shape[0]} rows of {name!r}, which cannot be "
                    f"shared by {ways} devices; change --set data.{stream}.batch so that they are "
                    f"a multiple of {ways}, or the mesh"
                )


def share(mesh: Mesh, rules: Rules) -> tuple[int, int]:
    """Which part of a batch's rows this process reads, of how many parts: (0, 1) is all.

    Processes whose devices hold the same rows (their tensor axis goes across them) read the same.

    Raises:
      UserError: the devices of a process hold no run of rows of the common length.
    """
    parts: dict[int, set[tuple[int, int]]] = {}
    for device, (rows,) in _by_row(mesh, rules).devices_indices_map((mesh.size,)).items():
        start, stop, _ = rows.indices(mesh.size)
        parts.setdefault(device.process_index, set()).add((start, stop))
    ends = {i: (min(found)[0], max(found)[1]) for i, found in parts.items()}
    start, stop = ends[jax.process_index()]
    size = stop - start
    whole = all(sum(b - a for a, b in found) == size for found in parts.values())
    if not whole or any(b - a != size or a % size for a, b in ends.values()):
        raise UserError(
            f"the rows of a batch do not fall to processes in equal runs ({sorted(ends.values())} "
            f"of {mesh.size}); give the data and fsdp axes of the mesh a multiple or a divisor of "
            f"{len(parts)} processes"
        )
    return start // size, mesh.size // size


def put(batch: Batch, mesh: Mesh, rules: Rules) -> Batch:
    """Moves this host's rows to its devices, split as activations are along B."""
    sharding = _by_row(mesh, rules)
    return jax.tree.map(lambda x: jax.make_array_from_process_local_data(sharding, x), batch)


def _by_row(mesh: Mesh, rules: Rules) -> NamedSharding:
    return NamedSharding(mesh, activation_spec("B", rules))
