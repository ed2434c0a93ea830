"""The one step for any mix of objectives; on a first reading go straight to `train_step`."""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from llama_jax.config import Run
from llama_jax.kernels.backends import Receipt, recording, strictly
from llama_jax.objectives.base import applied
from llama_jax.optim.frozen import held, of_trained
from llama_jax.optim.precision import stepped, whole
from llama_jax.train.accumulate import Batch, Loss, Sums, accumulated, sums_of
from llama_jax.train.state import Plan, TrainState

ROUNDING = 2**31 - 1  # of a step's keys the one that rounds weights; dropout's come from others


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
    given = loss if plan.trains is None else Held(loss, plan.trains)
    gradient = jax.value_and_grad(given, has_aux=True)
    if accumulate > 1:
        gradient = accumulated(given, objectives, accumulate)

    def train_step(state: TrainState, batch: Batch) -> tuple[TrainState, dict[str, jax.Array]]:
        key = jax.random.fold_in(jax.random.wrap_key_data(state.key), state.step)
        (total, sums), grads = gradient(state.params, batch, key)
        grads = whole(grads)  # those of weights in bfloat16 come in it
        grad_norm = optax.tree.norm(of_trained(plan.trains, grads))
        updates, opt_state = plan.transform.update(grads, state.opt_state, state.params)
        params = stepped(state.params, updates, jax.random.fold_in(key, ROUNDING))
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


class Programs:
    """The compiled steps of a run: a step of another number of batches is another program.

    Args:
      run: says how many micro-batches a batch is, and whether kernels may fall back.
      layout: the plan of its state.
      loss: from `bind`.
      say: told when steps of another number of batches begin.

    Attributes:
      receipts: which kernel computes what, as the last call found it while it compiled.
    """

    def __init__(self, run: Run, layout: Plan, loss: Loss, say: Callable[[str], None]):
        self.receipts: Counter[Receipt] = Counter()
        self._run, self._layout, self._loss, self._say = run, layout, loss, say
        self._made: dict[int, Callable] = {}

    def __call__(
        self, batches: int, state: TrainState, batch: Batch
    ) -> tuple[TrainState, dict[str, jax.Array]]:
        """Dispatches a step over so many batches of the loader, joined in one; takes the state."""
        step = self._made.get(batches) or self._make(batches)
        with recording() as self.receipts, strictly(self._run.strict):
            return step(state, batch)

    def _make(self, batches: int) -> Callable:
        run, micro = self._run, self._run.accumulate * batches
        if run.batch_schedule:
            self._say(f"a step takes {batches} batch(es) from here on, in {micro} micro-batches")
        rate = run.optimizer.rate_at(run.steps)
        step = make_train_step(self._layout, self._loss, rate, run.objectives, micro, run.ema)
        self._made[batches] = step
        return step


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


@dataclass(frozen=True)
class Held:
    """A loss in which some weights are constants, so that no gradient of them is computed.

    Attributes:
      loss: from `bind`.
      trains: a tree of bool, False for these.
    """

    loss: Loss
    trains: Any

    @property
    def model(self) -> nn.Module:
        """The unbound module."""
        return self.loss.model  # pyright: ignore[reportFunctionMemberAccess]

    def __call__(self, params: Any, batch: Batch, key: jax.Array) -> tuple[jax.Array, Sums]:
        """See `Bound`."""
        return self.loss(held(self.trains, params), batch, key)


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
