"""The rules that stretch a rotary embedding, in float64, from the fields of a file.

Each gives what it makes of a pair's frequency, and the gain of all cosines. Apart from `layers`,
which has the same in float32.
"""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

U = 2.0**-24
ORIGINAL = "original_max_position_embeddings"


def stretched(
    rule: Mapping[str, Any], theta: float, f: np.ndarray, error: np.ndarray, length: int
) -> tuple[np.ndarray, np.ndarray]:
    """Frequencies after a rule, and how far float32 arithmetic may be from them.

    Args:
      rule: the fields, by Hugging Face's names; `context` is the model's.
      theta: the base.
      f: frequencies before, of the pairs.
      error: how far they may be off.
      length: tokens of the sequence.
    """
    n, kind = len(f), rule["rope_type"]
    factor = float(rule.get("factor") or 1.0)
    share, e = error / f, np.arange(n) / n
    if kind == "linear":
        found, rounding = f / factor, 0.0
    elif kind == "dynamic":
        original = rule["context"]
        grown = factor * max(length, original) / original - (factor - 1)
        # Three roundings before the power, one of the product.
        found, rounding = f * grown ** (-n / (n - 1) * e), 8 * e * (factor + 1)
    elif kind == "longrope":
        long = length > rule[ORIGINAL]
        found, rounding = f / np.array(rule["long_factor" if long else "short_factor"]), 1.0
    else:
        kept = _kept(rule, theta, n)
        found, rounding = f / factor * (1 - kept) + f * kept, 4 + (1 / factor + 1) * factor
    return found, found * (share + U * (1 + rounding))


def _kept(rule: Mapping[str, Any], theta: float, n: int) -> np.ndarray:
    """Of yarn: the share of each pair that is not stretched."""
    ends = []
    for waves in (rule.get("beta_fast") or 32, rule.get("beta_slow") or 1):
        turned = math.log(rule[ORIGINAL] / (waves * 2 * math.pi))
        ends.append(n * turned / math.log(theta))
    low, high = ends
    if rule.get("truncate", True):
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, 2 * n - 1)
    high = high + 0.001 if low == high else high
    return 1 - np.clip((np.arange(n) - low) / (high - low), 0, 1)


def gain(rule: Mapping[str, Any] | None) -> float:
    """What cosines and sines are multiplied by."""
    if rule is None or rule["rope_type"] not in ("yarn", "longrope"):
        return 1.0
    if (told := rule.get("attention_factor")) is not None:
        return float(told)
    factor = float(rule.get("factor") or rule["context"] / rule[ORIGINAL])
    if factor <= 1:
        return 1.0
    if rule["rope_type"] == "longrope":
        return math.sqrt(1 + math.log(factor) / math.log(rule[ORIGINAL]))
    shares = rule.get("mscale"), rule.get("mscale_all_dim")
    above, below = map(float, shares) if all(shares) else (1.0, 0.0)  # pyright: ignore
    return (0.1 * above * math.log(factor) + 1) / (0.1 * below * math.log(factor) + 1)
