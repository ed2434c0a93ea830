"""Trigram models, beside which a perplexity shows what a network has learned.

Interpolated Kneser-Ney (Kneser and Ney 1995; Chen and Goodman 1999, section 4.1.6), counted with
NumPy. A context is a tuple of offsets, the farthest first: (-2, -1) are the two tokens before, as
in a language model; a masked token may be guessed from (2, 1), the two behind it, and from (-1, 1),
its neighbours, as well.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

LEFT, RIGHT, AROUND = (-2, -1), (2, 1), (-1, 1)
SIDES = (LEFT, RIGHT, AROUND)
MOST_IDS = 1 << 20  # three ids are one number of 64 bits
ROUNDS = 50  # of fitting the shares of a mixture; they stand still long before


@dataclass(frozen=True)
class _Level:
    """Counts of n-grams by number, and of their contexts: how often, and before how many tokens."""

    grams: np.ndarray
    counts: np.ndarray
    contexts: np.ndarray
    totals: np.ndarray
    kinds: np.ndarray
    discount: float

    @classmethod
    def of(cls, grams: np.ndarray, counts: np.ndarray, base: int) -> "_Level":
        contexts, place = np.unique(grams // base, return_inverse=True)
        once, twice = (np.sum(counts == n) for n in (1, 2))
        # With few n-grams none may be there once, or all: the discount stays between 0 and 1.
        discount = (once + 1) / (once + 2 * twice + 2)
        totals = np.bincount(place, counts, minlength=len(contexts))
        kinds = np.bincount(place, minlength=len(contexts))
        return cls(grams, counts, contexts, totals, kinds, float(discount))

    def smoothed(self, grams_N: np.ndarray, lower_N: np.ndarray, base: int) -> np.ndarray:
        """Probabilities of n-grams, given those of the shorter context."""
        count = _found(self.grams, self.counts, grams_N)
        total = _found(self.contexts, self.totals, grams_N // base)
        kinds = _found(self.contexts, self.kinds, grams_N // base)
        known = np.maximum(count - self.discount, 0) + self.discount * kinds * lower_N
        return np.where(total > 0, known / np.maximum(total, 1), lower_N)


def _found(keys: np.ndarray, values: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """The value of each key; 0 of one that is not there."""
    at = np.minimum(np.searchsorted(keys, wanted), len(keys) - 1)
    return np.where(keys[at] == wanted, values[at], 0)


class Trigram:
    """P(token | two others), from the rows of a text.

    Attributes:
      offsets: where the two others stand, the farther first.
      vocab: how many ids there are, V.
    """

    def __init__(
        self, rows: Sequence[np.ndarray], offsets: tuple[int, int], vocab: int, least: int = 0
    ):
        """Counts rows of ids; beyond the ends of a row stands an id of its own.

        Args:
          rows: ids.
          offsets: see above.
          vocab: V.
          least: ids below it (`<cls>`, `<sep>`) are read and never predicted.
        """
        if vocab >= MOST_IDS:
            raise ValueError(f"vocab={vocab}; three ids below {MOST_IDS} make a number of 64 bits")
        self.offsets, self.vocab, self.least = offsets, vocab, least
        places = [np.flatnonzero(row >= least) for row in rows]
        context = np.concatenate([self.context(*pair) for pair in zip(rows, places, strict=True)])
        tokens = np.concatenate([row[at] for row, at in zip(rows, places, strict=True)])
        grams, counts = np.unique(self._grams(context, tokens), return_counts=True)
        self.levels = [_Level.of(grams, counts, self.base)]
        for width in (2, 1):  # of fewer tokens it counts before how many others they came
            grams, counts = np.unique(grams % self.base**width, return_counts=True)
            self.levels.append(_Level.of(grams, counts, self.base))

    @property
    def base(self) -> int:
        """One more than V, for what stands beyond the ends."""
        return self.vocab + 1

    def context(self, row_T: np.ndarray, places_N: np.ndarray) -> np.ndarray:
        """The two others of some places of a row, [N, 2]."""
        at_N2 = np.asarray(places_N)[:, None] + np.array(self.offsets)
        inside = (at_N2 >= 0) & (at_N2 < len(row_T))
        return np.where(inside, np.asarray(row_T)[np.clip(at_N2, 0, len(row_T) - 1)], self.vocab)

    def _grams(self, context_N2: np.ndarray, token_N: np.ndarray) -> np.ndarray:
        far, near = np.asarray(context_N2, np.int64).T
        return (far * self.base + near) * self.base + token_N

    def __call__(self, context_N2: np.ndarray, token_N: np.ndarray) -> np.ndarray:
        """The probability of each token after its context."""
        grams = self._grams(context_N2, token_N)
        p_N = np.full(len(grams), 1 / (self.vocab - self.least))
        for level, width in zip(reversed(self.levels), (1, 2, 3), strict=True):
            p_N = level.smoothed(grams % self.base**width, p_N, self.base)
        return p_N


class Trigrams:
    """A mixture of trigram models, whose shares are fitted on rows that they did not count."""

    def __init__(
        self,
        rows: Sequence[np.ndarray],
        contexts: Sequence[tuple[int, int]],
        vocab: int,
        least: int = 0,
    ):
        """Counts the rows; if there are several models, nine of ten, and fits on the others."""
        aside = [row for i, row in enumerate(rows) if i % 10 == 9]
        rows = rows if len(contexts) == 1 else [row for i, row in enumerate(rows) if i % 10 != 9]
        self.models = [Trigram(rows, offsets, vocab, least) for offsets in contexts]
        self.shares = np.full(len(contexts), 1 / len(contexts))
        if len(contexts) > 1 and aside:
            there = [(row, at, row[at]) for row in aside if len(at := np.flatnonzero(row >= least))]
            p_KN = np.concatenate([self._each(*example) for example in there], axis=1)
            for _ in range(ROUNDS):
                mine_KN = self.shares[:, None] * p_KN
                self.shares = np.mean(mine_KN / mine_KN.sum(0), axis=1)

    def _each(self, row_T: np.ndarray, places_N: np.ndarray, token_N: np.ndarray) -> np.ndarray:
        return np.stack([m(m.context(row_T, places_N), token_N) for m in self.models])

    def __call__(self, row_T: np.ndarray, places_N: np.ndarray, token_N: np.ndarray) -> np.ndarray:
        """The probabilities of tokens at some places of a row, whose own ids there are not read."""
        return self.shares @ self._each(row_T, places_N, token_N)


Batch = Mapping[str, np.ndarray]
# A row of ids, places in it, and the tokens that belong there.
Example = tuple[np.ndarray, np.ndarray, np.ndarray]


def perplexity(model: Trigrams, examples: Sequence[Example]) -> float:
    """Of what the examples ask for."""
    p_N = np.concatenate([model(*example) for example in examples])
    return float(np.exp(-np.mean(np.log(p_N))))


@dataclass(frozen=True)
class Reading:
    """How trigrams read the batches of an objective, by the field that it predicts.

    Attributes:
      name: what the model is.
      contexts: where its trigrams look.
      whole: the rows of a training batch, nothing hidden.
      asked: what a batch asks for.
    """

    name: str
    contexts: tuple[tuple[int, int], ...]
    whole: Callable[[Batch], list[np.ndarray]]
    asked: Callable[[Batch], list[Example]]


def unhidden(batch: Batch) -> list[np.ndarray]:
    """The texts of a batch of MLM, as they were."""
    found = []
    for row, valid, (_, at, tokens) in zip(
        batch["text"], batch["text_valid"], masked(batch), strict=True
    ):
        row = np.array(row)
        row[at] = tokens
        found.append(row[valid])
    return found


def masked(batch: Batch) -> list[Example]:
    """What a batch of MLM asks for; what is hidden of the text is hidden from the trigrams too."""
    fields = (batch["text"], batch["text_valid"], batch["mlm_positions"], batch["mlm_targets"])
    found = []
    for row, valid, at, tokens, use in zip(*fields, _used(batch, "mlm_weights"), strict=True):
        found.append((row[valid], at[use], tokens[use]))
    return found


def sequences(batch: Batch) -> list[np.ndarray]:
    """The texts of a batch of next-token prediction, up to the last token that counts."""
    return [row[: at[-1] + 1] for row, at, _ in following(batch) if len(at)]


def following(batch: Batch) -> list[Example]:
    """What a batch of next-token prediction asks for."""
    found = []
    used = _used(batch, "loss_weights")
    for read, said, use in zip(batch["tokens"], batch["targets"], used, strict=True):
        at = np.flatnonzero(use)
        row = np.append(read, 0)
        row[at + 1] = said[at]
        found.append((row, at + 1, said[at]))
    return found


def _used(batch: Batch, weights: str) -> np.ndarray:
    """Which predictions count: not those of rows that fill the last batch."""
    used = np.asarray(batch[weights]) > 0
    return used & np.asarray(batch["row_valid"], bool)[:, None] if "row_valid" in batch else used


READINGS = {
    "mlm_targets": Reading("trigrams of both sides", SIDES, unhidden, masked),
    "targets": Reading("trigram", (LEFT,), sequences, following),
}
