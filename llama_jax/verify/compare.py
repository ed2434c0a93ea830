"""Logits of two programs, position by position."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from llama_jax.verify.consistency import log_softmax
from llama_jax.verify.layout import nats
from llama_jax.verify.report import Line, within

WORST = 3  # positions that are named


@dataclass(frozen=True)
class Comparison:
    """How far two sets of logits are apart.

    Attributes:
      worst_T: the largest difference of each position.
      kl_T: Kullback-Leibler divergence of ours from theirs at each position, nats.
      same_T: whether the most probable token is the same.
      scale: the largest logit of theirs, in size.
      nats: mean loss of the tokens, theirs and ours.
    """

    worst_T: np.ndarray
    kl_T: np.ndarray
    same_T: np.ndarray
    scale: float
    nats: tuple[float, float]

    @property
    def worst(self) -> float:
        """The largest difference; NaN if there is one anywhere."""
        return float(self.worst_T.max())


def compare(ours_TV: np.ndarray, theirs_TV: np.ndarray, ids: Sequence[int]) -> Comparison:
    """Compares logits of the same tokens."""
    # A position at a time, for float64 of all would be as large as some models.
    kl = []
    for mine, their in zip(ours_TV, theirs_TV, strict=True):
        p = log_softmax(their)
        kl.append(float(np.sum(np.exp(p) * (p - log_softmax(mine)))))
    return Comparison(
        worst_T=np.abs(ours_TV - theirs_TV).max(-1),
        kl_T=np.array(kl),
        same_T=ours_TV.argmax(-1) == theirs_TV.argmax(-1),
        scale=float(np.abs(theirs_TV).max()),
        nats=(nats(theirs_TV, ids), nats(ours_TV, ids)),
    )


def lines(name: str, found: Comparison, share: float) -> list[Line]:
    """What a reader wants to know of a comparison.

    Args:
      name: what was compared.
      found: what the comparison gave.
      share: the part of the largest logit that two may differ by.
    """
    bound = share * max(found.scale, 1.0)
    # NaN is worse than any number.
    order = np.argsort(-np.nan_to_num(found.worst_T, nan=np.inf), kind="stable")[:WORST]
    named = ", ".join(f"{i} ({found.worst_T[i]:.1e})" for i in order)
    total, agree = len(found.same_T), int(found.same_T.sum())
    apart = found.nats[1] - found.nats[0]
    return [
        within(
            f"logits, {name}",
            found.worst,
            bound,
            f"largest difference {found.worst:.1e}, {found.worst / max(found.scale, 1.0):.1e} of "
            f"the largest logit; tolerance {bound:.1e} ({share:.1e})",
            positions=found.worst_T.tolist(),
            scale=found.scale,
        ),
        Line("  worst positions", named, numbers={"positions": order.tolist()}),
        Line(
            "  mean KL divergence",
            f"{found.kl_T.mean():.1e} nats",
            numbers={"nats": float(found.kl_T.mean())},
        ),
        Line(
            "  top-1 agreement",
            f"{100 * agree / total:.4g} % ({agree} of {total})",
            numbers={"agree": agree, "of": total},
        ),
        Line(
            "  loss",
            f"{found.nats[0]:.6f} there, {apart:+.1e} here",
            numbers={"theirs": found.nats[0], "ours": found.nats[1]},
        ),
    ]
