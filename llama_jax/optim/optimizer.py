"""Optimizers: optax chains made from their dataclasses.

Each is a direction for the weights to go; clipping before it, and decay, groups and the rate after
it, are the same for all:

    gradient ── clip ── direction ── + decay x weight ── x group ── x rate ── weight -= it
"""

from dataclasses import fields
from typing import Any, get_args

import jax
import optax
import optax.contrib

from llama_jax.checked import checked
from llama_jax.errors import UserError, nearest
from llama_jax.limits import check_limits
from llama_jax.optim.adafactor import each_matrix
from llama_jax.optim.frozen import of_trained, trained_alone
from llama_jax.optim.parameters import (
    Group,
    decay_mask,
    decays,
    multipliers,
    muon_axes,
    scale_by_group,
)
from llama_jax.optim.precision import DTYPES, LAST_BIT, in_float32, squares_in
from llama_jax.optim.schedules import WSD, Constant, Cosine, Linear, Schedule

__all__ = [
    "SGD",
    "WSD",
    "Adafactor",
    "AdamW",
    "Constant",
    "Cosine",
    "Group",
    "Linear",
    "Lion",
    "Muon",
    "Optimizer",
    "decay_mask",
    "decays",
    "named",
]


@checked
class Optimizer:
    """What all optimizers share; the decay is decoupled from the gradient (arXiv:1711.05101).

    Attributes:
      rate: the peak learning rate.
      schedule: how the rate moves over the steps.
      weight_decay: share of a weight taken off each step, times the rate; see `decays`.
      clip: largest norm of all gradients together; None does not clip.
      groups: parameters with rates of their own; ("text/*", 0.1) is short for a Group.
    """

    rate: float = 1e-3
    schedule: Schedule = Cosine()
    weight_decay: float = 0.1
    clip: float | None = 1.0
    groups: tuple[Any, ...] = ()

    def __post_init__(self):
        check_limits(self)
        object.__setattr__(self, "groups", tuple(map(Group.of, self.groups)))

    def rate_at(self, steps: int) -> optax.Schedule:
        """Step -> rate, for a run of so many steps."""
        return self.schedule.build(self.rate, steps)

    def direction(self, boxed: Any) -> optax.GradientTransformation:
        """The optimizer itself, uphill and at rate 1."""
        raise NotImplementedError

    def build(self, steps: int, boxed: Any) -> optax.GradientTransformation:
        """The optax chain for a run of `steps` steps over parameters with these letters.

        Args:
          steps: steps of the whole run; the schedule's length.
          boxed: the tree of parameters (or their shapes), each a `Lettered` box.

        Raises:
          UserError: a group that takes no parameter.
        """
        trains = self.trains(boxed)
        groups = ()
        if self.groups:
            groups = (scale_by_group(of_trained(trains, multipliers(self.groups, boxed))),)
        boxed = of_trained(trains, boxed)
        chain = optax.chain(
            optax.identity() if self.clip is None else optax.clip_by_global_norm(self.clip),
            self.direction(boxed),
            optax.add_decayed_weights(self.weight_decay, decay_mask(boxed)),
            *groups,
            optax.scale_by_learning_rate(self.rate_at(steps)),
        )
        return in_float32(chain if trains is None else trained_alone(chain, trains))

    def trains(self, boxed: Any) -> Any:
        """A tree of bool, False for what a group freezes; None if all parameters learn.

        What is frozen has no moments, and a step computes no gradient of it.
        """
        factors = multipliers(self.groups, boxed)
        if all(jax.tree.leaves(factors)):
            return None
        return jax.tree.map(bool, factors)


@checked
class AdamW(Optimizer):
    """Adam (Kingma and Ba 2014, arXiv:1412.6980): two numbers a weight.

    Attributes:
      b1: decay of the mean of gradients.
      b2: decay of the mean of squared gradients.
      eps: added to the root of the latter.
      mu_dtype: what the mean is kept in, "float32" or "bfloat16".
      nu_dtype: what the mean of squares is kept in; bfloat16 loses what a b2 near 1 adds.
    """

    b1: float = 0.9
    b2: float = 0.95
    eps: float = 1e-8
    mu_dtype: str = "float32"
    nu_dtype: str = "float32"

    def __post_init__(self):
        super().__post_init__()
        for name in ("mu_dtype", "nu_dtype"):
            if getattr(self, name) not in DTYPES:
                raise UserError(f"{name}={getattr(self, name)!r}: give {' or '.join(DTYPES)}")
        if self.nu_dtype == "bfloat16" and 1 - self.b2 < LAST_BIT:
            raise UserError(
                f"nu_dtype='bfloat16' with b2={self.b2}: a step changes the mean of squares by "
                f"{1 - self.b2:.1%}, which eight bits round away; give b2=0.99 or less, or float32"
            )

    def direction(self, boxed: Any) -> optax.GradientTransformation:
        """The mean over the root of the mean square."""
        adam = optax.scale_by_adam(self.b1, self.b2, self.eps, mu_dtype=self.mu_dtype)
        return adam if self.nu_dtype == "float32" else squares_in(adam, self.nu_dtype)


@checked
class Adafactor(Optimizer):
    """Adafactor (Shazeer and Stern 2018, arXiv:1804.04235): a row and a column a matrix.

    Steps are measured in the root mean square of the weight, so a rate of 0.01 is 1 % of it; what
    a matrix is, the letters say (`adafactor.py`).

    Attributes:
      decay: exponent of how mean squares fade: after n steps by 1 - n^-decay.
      threshold: largest root mean square of a step before it is scaled.
      factor_from: matrices of which both sides are at least so long are factored.
    """

    rate: float = 1e-2
    weight_decay: float = 0.0
    decay: float = 0.8
    threshold: float = 1.0
    factor_from: int = 128

    def direction(self, boxed: Any) -> optax.GradientTransformation:
        """The gradient over the factored root mean square, limited, times the weight's own."""
        factored = optax.scale_by_factored_rms(
            decay_rate=self.decay, min_dim_size_to_factor=self.factor_from
        )
        then = optax.chain(
            optax.clip_by_block_rms(self.threshold), optax.scale_by_param_block_rms()
        )
        return each_matrix(factored, then, boxed)


@checked
class Lion(Optimizer):
    """The sign of a mean of gradients (Chen et al. 2023, arXiv:2302.06675): one number a weight.

    Its steps are larger than Adam's, so the paper takes a rate three to ten times lower and a decay
    as many times higher.

    Attributes:
      b1: weight of the mean against the new gradient, in the step.
      b2: the same, in the mean that is kept.
      mu_dtype: what that is kept in, "float32" or "bfloat16".
    """

    rate: float = 1e-4
    weight_decay: float = 1.0
    b1: float = 0.9
    b2: float = 0.99
    mu_dtype: str = "float32"

    def direction(self, boxed: Any) -> optax.GradientTransformation:
        """The sign."""
        return optax.scale_by_lion(self.b1, self.b2, mu_dtype=self.mu_dtype)


@checked
class Muon(Optimizer):
    """Orthogonal steps for the matrices between hidden vectors, AdamW (Nesterov's) for all else.

    Jordan 2024 (kellerjordan.github.io/posts/muon); one number a weight of a matrix. The steps have
    the root mean square of AdamW's, so that its rate and decay fit both (arXiv:2502.16982). Heads
    are one side of a matrix, each layer a matrix of its own: `sides` in parameters.py.

    Attributes:
      momentum: decay of the mean of gradients (Nesterov's).
      rms: root mean square of a step at rate 1.
      b1: for AdamW, which takes the rest, as are b2 and eps.
      b2: see `AdamW`.
      eps: see `AdamW`.
    """

    momentum: float = 0.95
    rms: float = 0.2
    b1: float = 0.9
    b2: float = 0.95
    eps: float = 1e-8

    def direction(self, boxed: Any) -> optax.GradientTransformation:
        """Optax's, whose own rate is 1 and whose sign is turned back."""
        muon = optax.contrib.muon(
            1.0,
            beta=self.momentum,
            eps=self.eps,
            adam_b1=self.b1,
            adam_b2=self.b2,
            muon_weight_dimension_numbers=muon_axes(boxed),
            consistent_rms=self.rms,
        )
        return optax.chain(muon, optax.scale(-1.0))


@checked
class SGD(Optimizer):
    """Gradients with momentum: one number a weight.

    Attributes:
      momentum: share of the last step that is taken again.
      nesterov: look ahead by it.
    """

    rate: float = 1e-2
    weight_decay: float = 0.0
    momentum: float = 0.9
    nesterov: bool = False

    def direction(self, boxed: Any) -> optax.GradientTransformation:
        """The decaying sum of gradients."""
        return optax.trace(self.momentum, self.nesterov)


def named(old: Optimizer | Schedule, name: str) -> Optimizer | Schedule:
    """The optimizer or schedule that a name means where `old` was, with that one's choices.

    An optimizer keeps the schedule, the clipping and the groups, a schedule the warmup and the
    floor; rate and decay mean another thing to each optimizer, so they are the new one's own.

    Raises:
      UserError: no such name; the nearest is given.
    """
    ours = isinstance(old, Optimizer)
    kinds = Optimizer.__subclasses__() if ours else get_args(Schedule)
    known = {kind.__name__.lower(): kind for kind in kinds}
    if name.lower() not in known:
        what = "optimizer" if ours else "schedule"
        raise UserError(
            f"unknown {what} {name!r}; expected {', '.join(known)}" + nearest(name.lower(), known)
        )
    kind = known[name.lower()]
    stay = ("schedule", "clip", "groups") if ours else ("warmup", "floor", "begin")
    has = {field.name for field in fields(kind)} & {field.name for field in fields(old)}
    return kind(**{field: getattr(old, field) for field in stay if field in has})
