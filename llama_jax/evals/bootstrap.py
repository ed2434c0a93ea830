"""How sure a figure over a set of examples is: 95 % intervals by the bootstrap.

The set is drawn again from itself, with replacement, and the figure taken of each such set (Efron
1979; for BLEU Koehn 2004, "Statistical Significance Tests for Machine Translation Evaluation");
the interval holds the middle 95 % of these. So it tells what other test sets of the same kind would
give, for the same model, if examples are independent; a figure of 0 or 100 % has no width.
"""

from collections.abc import Callable

import numpy as np
from numpy.typing import ArrayLike

SAMPLES = 1000  # the ends of an interval then vary by about a twentieth of its width
SEED = 0  # so that two evaluations agree
AT_ONCE = 1 << 22  # numbers drawn at a time: 32 MiB

Figure = tuple[float, float, float]  # value and the ends of its interval


def interval(statistics_NS: np.ndarray, value: Callable[[np.ndarray], np.ndarray]) -> Figure:
    """A figure with its interval, of statistics that add up over examples.

    Args:
      statistics_NS: a row of numbers for each example.
      value: sums of statistics [R,S] to figures [R].
    """
    if not len(statistics_NS):
        return np.nan, np.nan, np.nan
    whole = float(value(statistics_NS.sum(axis=0, keepdims=True))[0])
    low, high = np.quantile(value(resampled(statistics_NS)), (0.025, 0.975))
    return whole, float(low), float(high)


def mean(values_N: ArrayLike) -> Figure:
    """The mean of a value a example, such as whether it is right, with its interval."""
    values_N1 = np.asarray(values_N, np.float64).reshape(-1, 1)
    return interval(values_N1, lambda sums: sums[:, 0] / len(values_N1))


def balanced(*parts: ArrayLike) -> Figure:
    """The mean of the means of several sets, each drawn anew on its own, with its interval."""
    sets = [np.asarray(values_N, np.float64).reshape(-1, 1) for values_N in parts]
    if not all(map(len, sets)):
        return np.nan, np.nan, np.nan
    whole = float(np.mean([np.mean(values_N1) for values_N1 in sets]))
    drawn = [resampled(one, SEED + i)[:, 0] / len(one) for i, one in enumerate(sets)]
    low, high = np.quantile(np.mean(drawn, axis=0), (0.025, 0.975))
    return whole, float(low), float(high)


def resampled(statistics_NS: np.ndarray, seed: int = SEED) -> np.ndarray:
    """Sums over sets drawn from the examples with replacement, [SAMPLES,S].

    Examples with the same statistics are drawn as one kind: a set of right and wrong answers takes
    two numbers a sample, not N.
    """
    kinds_KS, counts_K = np.unique(statistics_NS, axis=0, return_counts=True)
    share_K, size = counts_K / counts_K.sum(), len(statistics_NS)
    rng, step = np.random.default_rng(seed), max(1, AT_ONCE // len(kinds_KS))
    parts = [
        rng.multinomial(size, share_K, size=min(step, SAMPLES - done)) @ kinds_KS
        for done in range(0, SAMPLES, step)
    ]
    return np.concatenate(parts)
