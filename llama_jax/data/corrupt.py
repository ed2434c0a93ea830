"""What masked language modelling hides. Pure NumPy, an explicit rng.

A text here is an int array [n, 2]: token id and word index (pieces of one word share an index).
Sentence pairs are in `pairs.py`, span corruption in `spans.py`.

Sources: google-research/bert `create_pretraining_data.py`; Joshi et al. 2020 (spans).
"""

from typing import Literal, NamedTuple

import numpy as np

from llama_jax.checked import checked
from llama_jax.data.checks import at_least
from llama_jax.errors import UserError


@checked
class Masking:
    """How MLM chooses and hides tokens.

    Attributes:
      rate: share of a row's tokens to predict.
      unit: chosen as one: a token, a whole word, or a span of geometric length.
      sampling: "count" takes exactly max(1, round(rate * n)) (BERT), "bernoulli" tosses a coin for
        each unit.
      predictions: static number of predictions a row has room for; None for `rate` of the row's
        length (and four standard deviations more under "bernoulli").
      mask: share of the chosen that become `<mask>`.
      random: share of the chosen that become a random token; the rest is kept.
      mean_span: mean length of a span, in tokens.
      longest_span: longer spans are cut to this.
    """

    rate: float = 0.15
    unit: Literal["token", "whole_word", "span"] = "token"
    sampling: Literal["count", "bernoulli"] = "count"
    predictions: int | None = None
    mask: float = 0.8
    random: float = 0.1
    mean_span: float = 3.0
    longest_span: int = 10

    def __post_init__(self) -> None:
        """Checks the values."""
        if not 0 < self.rate < 1 or self.mask < 0 or self.random < 0 or self.mask + self.random > 1:
            raise UserError(
                f"rate={self.rate}, mask={self.mask}, random={self.random}; expected 0 < rate < 1 "
                "and mask + random <= 1; try Masking()"
            )
        at_least(1, self, "predictions", "mean_span", "longest_span")

    def width(self, length: int) -> int:
        """A, the static number of predictions of a row of `length` tokens."""
        if self.predictions is not None:
            return self.predictions
        mean = self.rate * length
        if self.sampling == "bernoulli":
            mean += 4 * np.sqrt(length * self.rate * (1 - self.rate))
        return min(length, max(1, round(mean)))


class Replacements(NamedTuple):
    """The ids that masking writes: `<mask>`, and random ones in [first, last)."""

    mask: int
    first: int
    last: int


def mask_tokens(
    text_T2: np.ndarray,
    rng: np.random.Generator,
    masking: Masking,
    replacements: Replacements,
    width: int,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Hides some tokens of one row.

    Args:
      text_T2: ids and word indices; a word index below 0 marks a special token, never chosen.
      rng: source of all choices.
      masking: how to choose and hide.
      replacements: the ids to write.
      width: the most predictions.

    Returns:
      The corrupted ids [T], the chosen positions (ascending) and the ids that were there.
    """
    ids_T, words_T = text_T2[:, 0].copy(), text_T2[:, 1]
    candidates = np.flatnonzero(words_T >= 0)
    if not len(candidates):
        return ids_T, candidates, candidates
    units = _units(candidates, words_T, rng, masking)
    if masking.sampling == "count":
        budget = min(width, max(1, round(masking.rate * len(ids_T))))
        units = _fill(units, budget)
    else:
        units = _fill(_toss(units, rng, masking), width)
    if not units:
        return ids_T, candidates[:0], candidates[:0]
    positions = np.concatenate(units)
    # Tokens decide one by one what becomes of them; a span decides as a whole (SpanBERT).
    draws = rng.random(len(units) if masking.unit == "span" else len(positions))
    if masking.unit == "span":
        draws = np.repeat(draws, [len(unit) for unit in units])
    noise = rng.integers(replacements.first, replacements.last, len(positions))
    order = np.argsort(positions)
    positions, draws, noise = positions[order], draws[order], noise[order]
    targets = ids_T[positions]
    replaced = np.where(draws < masking.mask + masking.random, noise, targets)
    ids_T[positions] = np.where(draws < masking.mask, replacements.mask, replaced)
    return ids_T, positions, targets


def _units(
    candidates: np.ndarray, words_T: np.ndarray, rng: np.random.Generator, masking: Masking
) -> list[np.ndarray]:
    """Cuts the candidate positions into units that are chosen together, in random order."""
    if masking.unit == "token":
        return list(rng.permutation(candidates)[:, None])
    breaks = np.flatnonzero(np.diff(candidates) > 1) + 1
    if masking.unit == "whole_word":
        breaks = np.flatnonzero((np.diff(candidates) > 1) | (np.diff(words_T[candidates]) != 0)) + 1
        units = np.split(candidates, breaks)
    else:  # spans never cross a special token
        units = []
        for run in np.split(candidates, breaks):
            lengths = rng.geometric(1 / masking.mean_span, len(run))
            cuts = np.cumsum(np.minimum(lengths, masking.longest_span))
            units += np.split(run, cuts[cuts < len(run)])
    return [units[i] for i in rng.permutation(len(units))]


def _fill(units: list[np.ndarray], budget: int) -> list[np.ndarray]:
    """Takes units in order while they fit in the budget, passing over those that do not."""
    taken, left = [], budget
    for unit in units:
        if len(unit) <= left:
            taken.append(unit)
            left -= len(unit)
        if not left:
            break
    return taken or [units[0][:budget]] if units and budget else []


def _toss(units: list[np.ndarray], rng: np.random.Generator, masking: Masking) -> list[np.ndarray]:
    """Keeps each unit with probability `rate`."""
    heads = rng.random(len(units)) < masking.rate
    return [unit for unit, head in zip(units, heads, strict=True) if head]
