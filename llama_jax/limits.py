"""The least and the most that numbers of configs may be, by the names of their fields."""

import math
from dataclasses import fields
from typing import Any

from llama_jax.errors import UserError

ABOVE_0 = math.ulp(0.0)
SHARE, NONE_OR_MORE = (0, 1), (0, math.inf)
SOME, POSITIVE = (1, math.inf), (ABOVE_0, math.inf)

# A name has the same limits in every config that is checked by them.
LIMITS = {
    # of optimizers and schedules
    **dict.fromkeys(("b1", "b2", "momentum", "begin", "floor", "decay_share", "decay"), SHARE),
    **dict.fromkeys(("rate", "weight_decay", "warmup"), NONE_OR_MORE),
    **dict.fromkeys(("clip", "threshold", "rms"), POSITIVE),
    "factor_from": SOME,
    # of layers and models
    **dict.fromkeys(("eps", "dropout"), SHARE),
    **dict.fromkeys(("theta", "scale", "temperature", "max_scale"), POSITIVE),
    **dict.fromkeys(("heads", "buckets", "distance"), SOME),
    "types": NONE_OR_MORE,
    # of objectives, evaluations and data
    "label_smoothing": SHARE,
    **dict.fromkeys(("z_loss", "labels", "every", "sentinels"), NONE_OR_MORE),
    **dict.fromkeys(("rows", "group", "limit", "batch"), SOME),
}


def check_limits(config: Any, *names: str) -> None:
    """Checks numbers of a config; None is none, and stays.

    Args:
      config: what was made.
      names: which; all of its fields that `LIMITS` has, by default. A class that others derive
        from names its own, for the same word may mean another thing in theirs.

    Raises:
      UserError: one is out of its limits.
    """
    for name in names or LIMITS.keys() & {field.name for field in fields(config)}:
        (least, most), value = LIMITS[name], getattr(config, name)
        if value is not None and not (math.isfinite(value) and least <= value <= most):
            raise UserError(f"{name}={value}: give {_within(least, most)}")


def _within(least: float, most: float) -> str:
    if most < math.inf:
        return f"a number from {least} to {most}"
    return "more than 0" if least == ABOVE_0 else f"{least} or more"
