"""AdamW and its schedules: optax chains made from their dataclasses; the decay mask by letter."""

from dataclasses import dataclass
from typing import Any

import jax
import optax

from llama_jax.layers.linear import Lettered


@dataclass(frozen=True)
class Constant:
    """The peak rate after a linear warmup of so many steps."""

    warmup: int = 0

    def build(self, rate: float, steps: int) -> optax.Schedule:
        """Step -> rate."""
        return _after_warmup(rate, self.warmup, optax.constant_schedule(rate))


@dataclass(frozen=True)
class Cosine:
    """Linear warmup, then half a cosine down to `floor` times the peak at the last step."""

    warmup: int = 100
    floor: float = 0.1

    def build(self, rate: float, steps: int) -> optax.Schedule:
        """Step -> rate."""
        # A run shorter than its warmup just stays in it.
        fall = optax.cosine_decay_schedule(rate, max(steps - self.warmup, 1), alpha=self.floor)
        return _after_warmup(rate, self.warmup, fall)


@dataclass(frozen=True)
class WSD:
    """Warmup, stable, decay: the rate is held, and falls linearly over the last `decay_share`.

    The stable part does not depend on the number of steps, so a run can be prolonged from any of
    its checkpoints (MiniCPM, section 4).
    """

    warmup: int = 100
    decay_share: float = 0.2
    floor: float = 0.0

    def build(self, rate: float, steps: int) -> optax.Schedule:
        """Step -> rate."""
        decay = max(round(self.decay_share * steps), 1)
        fall = optax.linear_schedule(rate, self.floor * rate, decay)
        stable = max(steps - decay - self.warmup, 0)
        held = optax.join_schedules([optax.constant_schedule(rate), fall], [stable])
        return _after_warmup(rate, self.warmup, held)


def _after_warmup(rate: float, warmup: int, then: optax.Schedule) -> optax.Schedule:
    if warmup == 0:
        return then
    return optax.join_schedules([optax.linear_schedule(0.0, rate, warmup), then], [warmup])


@dataclass(frozen=True)
class AdamW:
    """AdamW with decoupled weight decay and clipping by the norm of all gradients.

    Attributes:
      rate: the peak learning rate.
      schedule: how the rate moves over the steps.
      b1: decay of the mean of gradients.
      b2: decay of the mean of squared gradients.
      eps: added to the root of the latter.
      weight_decay: share of a weight taken off each step, times the rate; see `decays`.
      clip: largest norm of all gradients together; None does not clip.
    """

    rate: float = 1e-3
    schedule: Constant | Cosine | WSD = Cosine()
    b1: float = 0.9
    b2: float = 0.95
    eps: float = 1e-8
    weight_decay: float = 0.1
    clip: float | None = 1.0

    def rate_at(self, steps: int) -> optax.Schedule:
        """Step -> rate, for a run of so many steps."""
        return self.schedule.build(self.rate, steps)

    def build(self, steps: int, boxed: Any) -> optax.GradientTransformation:
        """The optax chain for a run of `steps` steps over parameters with these letters.

        Args:
          steps: steps of the whole run; the schedule's length.
          boxed: the tree of parameters (or their shapes), each a `Lettered` box.
        """
        return optax.chain(
            optax.identity() if self.clip is None else optax.clip_by_global_norm(self.clip),
            optax.scale_by_adam(self.b1, self.b2, self.eps),
            optax.add_decayed_weights(self.weight_decay, decay_mask(boxed)),
            optax.scale_by_learning_rate(self.rate_at(steps)),
        )


def decays(name: str, letters: str) -> bool:
    """Whether a parameter decays: matrices do, norm scales (one letter) and biases ("b") do not.

    The layer axis L, which `nn.scan` adds, does not make a matrix of a vector.
    """
    return name != "b" and len(letters.replace("L", "")) >= 2


def decay_mask(boxed: Any) -> Any:
    """A tree of bool, True where a parameter decays.

    Raises:
      TypeError: a parameter without letters; make it with `lettered(init, "DF")`.
    """

    def one(path, box):
        if not isinstance(box, Lettered):
            raise TypeError(
                f"parameter {path_name(path)} has no letters; make it with lettered(init, 'DF')"
            )
        return decays(path_name(path).rsplit("/", 1)[-1], box.letters)

    return jax.tree_util.tree_map_with_path(one, boxed, is_leaf=lambda x: isinstance(x, Lettered))


def path_name(path: tuple[Any, ...]) -> str:
    """A tree path as people write it: "text/stack/attn/q/w"."""
    return "/".join(
        str(getattr(part, "key", getattr(part, "name", getattr(part, "idx", part))))
        for part in path
    )
