"""Schedules: how the learning rate moves over the steps, made by optax."""

import optax

from llama_jax.checked import checked, checked_call
from llama_jax.limits import check_limits


@checked
class Constant:
    """The peak rate after a linear warmup of so many steps.

    Attributes:
      warmup: steps in which the rate rises to its peak.
      begin: see `after_warmup`.
    """

    warmup: int = 0
    begin: int = 1

    __post_init__ = check_limits

    @checked_call
    def build(self, rate: float, steps: int) -> optax.Schedule:
        """Step -> rate."""
        return after_warmup(rate, self, optax.constant_schedule(rate))


@checked
class Cosine:
    """Linear warmup, then half a cosine down to `floor` times the peak at the last step.

    Attributes:
      warmup: steps in which the rate rises to its peak.
      floor: the rate at the last step, as a share of the peak.
      begin: see `after_warmup`.
    """

    warmup: int = 100
    floor: float = 0.1
    begin: int = 1

    __post_init__ = check_limits

    @checked_call
    def build(self, rate: float, steps: int) -> optax.Schedule:
        """Step -> rate."""
        # A run shorter than its warmup just stays in it.
        fall = optax.cosine_decay_schedule(rate, max(steps - self.warmup, 1), alpha=self.floor)
        return after_warmup(rate, self, fall)


@checked
class Linear:
    """Linear warmup, then a straight line down to `floor` times the peak at the last step.

    Attributes:
      warmup: steps in which the rate rises to its peak.
      floor: the rate at the last step, as a share of the peak.
      begin: see `after_warmup`.
    """

    warmup: int = 100
    floor: float = 0.0
    begin: int = 1

    __post_init__ = check_limits

    @checked_call
    def build(self, rate: float, steps: int) -> optax.Schedule:
        """Step -> rate."""
        fall = optax.linear_schedule(rate, self.floor * rate, max(steps - self.warmup, 1))
        return after_warmup(rate, self, fall)


@checked
class WSD:
    """Warmup, stable, decay: the rate is held, and falls linearly over the last `decay_share`.

    The stable part does not depend on the number of steps, so a run can be prolonged from any of
    its checkpoints (MiniCPM, section 4).

    Attributes:
      warmup: steps in which the rate rises to its peak.
      decay_share: share of all steps in which the rate falls.
      floor: the rate at the last step, as a share of the peak.
      begin: see `after_warmup`.
    """

    warmup: int = 100
    decay_share: float = 0.2
    floor: float = 0.0
    begin: int = 1

    __post_init__ = check_limits

    @checked_call
    def build(self, rate: float, steps: int) -> optax.Schedule:
        """Step -> rate."""
        decay = max(round(self.decay_share * steps), 1)
        fall = optax.linear_schedule(rate, self.floor * rate, decay)
        stable = max(steps - decay - self.warmup, 0)
        held = optax.join_schedules([optax.constant_schedule(rate), fall], [stable])
        return after_warmup(rate, self, held)


Schedule = Constant | Cosine | Linear | WSD


def after_warmup(rate: float, schedule: Schedule, then: optax.Schedule) -> optax.Schedule:
    """A schedule after a warmup, in which step n (from 0) has the rate (n + begin) / warmup.

    `begin` is 1, so that the first step moves the weights. Runs of versions that began at 0 go on
    with 0.
    """
    warmup, begin = schedule.warmup, schedule.begin
    if warmup == 0:
        return then
    first = rate * begin / warmup
    rise = optax.linear_schedule(first, rate + first, warmup)
    return optax.join_schedules([rise, then], [warmup])
