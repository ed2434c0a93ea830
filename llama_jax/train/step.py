"""The one step for any mix of objectives; on a first reading go straight to `train_step`."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh, NamedSharding

from llama_jax.axes import Rules, activation_spec
from llama_jax.errors import UserError
from llama_jax.objectives.base import applied
from llama_jax.train.accumulate import Batch, Loss, Sums, accumulated, sums_of
from llama_jax.train.state import Plan, TrainState


def make_train_step(
    plan: Plan,
    loss: Loss,
    rate: optax.Schedule,
    objectives: dict[str, Any],
    accumulate: int = 1,
    ema: float | None = None,
):
    """The jitted `(state, batch) -> (state, metrics)`; the state given is donated.

    Args:
      plan: shapes, shardings and optimizer of the state.
      loss: from `bind`.
      rate: step -> learning rate, for the metrics (the optimizer has it too).
      objectives: by name, with `weight`; asked whether they are `contrastive` if micro-batches are
        made.
      accumulate: micro-batches a step; the results do not depend on it.
      ema: decay of the average of the weights, if the plan has one.

    Returns:
      A function whose metrics are float32 scalars on the device: `loss`, every name of the
      objectives as sum / count, `grad_norm` (before clipping), `rate`, `skipped` (steps so far) and
      `skipped_in_row`.
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
        average = state.ema
        if average is not None:
            average = averaged(average, params, ema or 0.0, state.step - state.skipped)

        # One NaN costs one step. The old trees are chosen, not multiplied by 0, which would keep a
        # NaN; a norm that overflows (a gradient of 1e30) counts as not finite.
        good = jnp.isfinite(total) & jnp.isfinite(grad_norm)
        params, opt_state, average = jax.tree.map(
            lambda new, old: jnp.where(good, new, old),
            (params, opt_state, average),
            (state.params, state.opt_state, state.ema),
        )
        bad = 1 - good.astype(jnp.int32)
        new = TrainState(
            step=state.step + 1,
            skipped=state.skipped + bad,
            skipped_in_row=(state.skipped_in_row + bad) * bad,
            params=params,
            opt_state=opt_state,
            key=state.key,
            ema=average,
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


def averaged(ema: Any, params: Any, decay: float, steps: jax.Array) -> Any:
    """The average after one more step: decay x ema + (1 - decay) x params.

    Early on it forgets faster, (1 + n) / (10 + n) after n steps, for it began with random weights
    (`tf.train.ExponentialMovingAverage`'s num_updates).
    """
    kept = jnp.minimum(decay, (1.0 + steps) / (10.0 + steps))
    return optax.incremental_update(params, ema, 1 - kept)


def means(sums: Sums) -> dict[str, jax.Array]:
    """sum / count of every entry, NaN where nothing was counted."""
    return {name: total / count for name, (total, count) in sums.items()}


@dataclass(frozen=True)
class Bound:
    """A loss as a function of parameters.

    Attributes:
      model: the unbound module.
      losses: `losses(objectives)`, a function over a bound module.
    """

    model: nn.Module
    losses: Callable

    def __call__(self, params: Any, batch: Batch, key: jax.Array) -> tuple[jax.Array, Sums]:
        """The total; sums by "<objective>/loss" and "<objective>/<metric>"."""
        total, found = applied(self.losses, self.model)(params, key, batch, key)
        return total, sums_of(found)


bind = Bound


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


def check_rows(fields: dict[str, Any], mesh: Mesh, rules: Rules) -> None:
    """Checks that all devices have an equal share of the rows.

    Args:
      fields: (shape, dtype) of every field of the batch, by stream and name.
      mesh: of the run.
      rules: of the run.

    Raises:
      UserError: rows that cannot be shared.
    """
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
