"""Schedules: how the learning rate moves over the steps, made by optax."""

from dataclasses import dataclass

import optax


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
class Linear:
    """Linear warmup, then a straight line down to `floor` times the peak at the last step."""

    warmup: int = 100
    floor: float = 0.0

    def build(self, rate: float, steps: int) -> optax.Schedule:
        """Step -> rate."""
        fall = optax.linear_schedule(rate, self.floor * rate, max(steps - self.warmup, 1))
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


Schedule = Constant | Cosine | Linear | WSD


def _after_warmup(rate: float, warmup: int, then: optax.Schedule) -> optax.Schedule:
    if warmup == 0:
        return then
    return optax.join_schedules([optax.linear_schedule(0.0, rate, warmup), then], [warmup])
