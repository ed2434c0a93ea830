"""What needs no weights: texts said by a rule, or by looking into the training data.

said("nearest", train, ["delete this page"])    the translation of the training text most like it

`train` is the training rows, with `source` and `target`. Two are hard to beat where data is small:
the nearest neighbour, and naive Bayes for labels.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from llama_jax.errors import UserError, nearest

Rows = Sequence[Mapping[str, str]]
Texts = Sequence[str]
LEAD = 8  # words of an English headline
NGRAMS = (1, 2, 3)  # lengths of the pieces by which texts are alike
DENSE = 1024  # pieces, of those that most texts have: 200 MB for 50,000 training texts
AT_ONCE = 256  # tests that are compared with all of the training data at a time


@dataclass(frozen=True)
class Baseline:
    """One way to say something.

    Attributes:
      said: training rows and the sources of a test to what is said to each.
      written: what tables call it.
    """

    said: Callable[[Rows, Texts], list[str]]
    written: str


def said(name: str, train: Rows, sources: Texts) -> list[str]:
    """What a baseline says.

    Args:
      name: one of `BASELINES`.
      train: the training rows.
      sources: what is asked.

    Raises:
      UserError: there is no such baseline, or nothing to learn from.
    """
    if name not in BASELINES:
        raise UserError(
            f"no baseline {name!r}; there are {', '.join(BASELINES)}{nearest(name, BASELINES)}"
        )
    if not len(train):
        raise UserError(f"baseline {name!r} of no training rows; expected one at least")
    return BASELINES[name].said(train, sources)


def _most_frequent(train: Rows, sources: Texts) -> list[str]:
    usual = Counter(row["target"] for row in train).most_common(1)[0][0]
    return [usual] * len(sources)


def _copy(train: Rows, sources: Texts) -> list[str]:
    del train
    return [*sources]


def _lead(train: Rows, sources: Texts) -> list[str]:
    del train
    return [" ".join(source.split()[:LEAD]) for source in sources]


def _nearest(train: Rows, sources: Texts) -> list[str]:
    """The target of the training text with the highest cosine of TF-IDF, the first of several."""
    known = _Counts.of((row["source"] for row in train), NGRAMS)
    asked = _Counts.of(sources, NGRAMS, known.pieces)
    seen_in_V = np.bincount(known.piece, minlength=len(known.pieces))
    idf_V = np.log((1 + known.texts) / (1 + seen_in_V)) + 1
    asked, train_by_piece = asked.weighed(idf_V), known.weighed(idf_V).by_piece()
    found: list[str] = []
    for alike_BN in _products(asked, train_by_piece, seen_in_V):
        found += [train[i]["target"] for i in alike_BN.argmax(axis=1).tolist()]
    return found


def _naive_bayes(train: Rows, sources: Texts) -> list[str]:
    """The label that is most probable by its frequency and its texts' pieces, each counted plus 1.

    Multinomial, over characters and pairs of characters (Manning, Raghavan and Schütze,
    "Introduction to Information Retrieval", 2008, chapter 13).
    """
    labels = sorted({row["target"] for row in train})
    of = {label: i for i, label in enumerate(labels)}
    label_N = np.array([of[row["target"]] for row in train])
    known = _Counts.of((row["source"] for row in train), (1, 2))
    counts_LV = np.ones((len(labels), len(known.pieces)))
    np.add.at(counts_LV, (label_N[known.text], known.piece), known.count)
    logp_LV = np.log(counts_LV / counts_LV.sum(axis=1, keepdims=True))
    prior_L = np.log(np.bincount(label_N) / len(label_N))
    asked = _Counts.of(sources, (1, 2), known.pieces)
    score_NL = np.tile(prior_L, (len(sources), 1))
    np.add.at(score_NL, asked.text, (asked.count * logp_LV[:, asked.piece]).T)
    return [labels[i] for i in score_NL.argmax(axis=1)]


@dataclass(frozen=True)
class _Counts:
    """How often which piece is in which text: a sparse matrix, sorted by text.

    Attributes:
      text: number of the text, for each entry.
      piece: number of the piece.
      count: how often it is there, or what weight it has.
      texts: how many texts there are.
      pieces: the number of each piece.
    """

    text: np.ndarray
    piece: np.ndarray
    count: np.ndarray
    texts: int
    pieces: dict[str, int]

    @classmethod
    def of(
        cls, texts: Iterable[str], lengths: Sequence[int], known: dict[str, int] | None = None
    ) -> "_Counts":
        """Counts pieces of these lengths, of those that are known, or of all."""
        pieces = {} if known is None else known
        text, piece, count, number = [], [], [], -1
        for number, one in enumerate(texts):
            for name, often in Counter(_pieces(one, lengths)).items():
                at = pieces.setdefault(name, len(pieces)) if known is None else pieces.get(name)
                if at is not None:
                    text.append(number)
                    piece.append(at)
                    count.append(often)
        numbers = np.array(text, np.int64), np.array(piece, np.int64)
        return cls(*numbers, np.array(count, np.float64), number + 1, pieces)

    def weighed(self, idf_V: np.ndarray) -> "_Counts":
        """Count times IDF, each text of length 1."""
        weight = self.count * idf_V[self.piece]
        norm_N = np.sqrt(np.bincount(self.text, weight**2, minlength=self.texts))
        weight = weight / np.maximum(norm_N[self.text], np.finfo(float).tiny)
        return _Counts(self.text, self.piece, weight, self.texts, self.pieces)

    def texts_from(self, begin: int, count: int) -> "_Counts":
        """So many texts, numbered from 0."""
        end = min(begin + count, self.texts)
        here = slice(*np.searchsorted(self.text, [begin, end]))
        return _Counts(
            self.text[here] - begin, self.piece[here], self.count[here], end - begin, self.pieces
        )

    def by_piece(self) -> "_Counts":
        """The same, sorted by piece."""
        order = np.argsort(self.piece, kind="stable")
        return _Counts(
            self.text[order], self.piece[order], self.count[order], self.texts, self.pieces
        )


def _products(asked: _Counts, known: _Counts, seen_in_V: np.ndarray) -> Iterator[np.ndarray]:
    """Products of all asked texts with all known ones, whose entries are sorted by piece, [B,N].

    Pieces that most texts have make a dense matrix, the others go one by one.
    """
    dense = np.argsort(-seen_in_V, kind="stable")[:DENSE]
    column_V = np.full(len(seen_in_V), -1)
    column_V[dense] = np.arange(len(dense))
    known_NK, starts_V = _columns(known, column_V), np.append(0, np.cumsum(seen_in_V))
    for begin in range(0, asked.texts, AT_ONCE):
        part = asked.texts_from(begin, AT_ONCE)
        alike_BN = _columns(part, column_V) @ known_NK.T
        rest = column_V[part.piece] < 0
        for row, piece, weight in zip(
            part.text[rest], part.piece[rest], part.count[rest], strict=True
        ):
            here = slice(starts_V[piece], starts_V[piece + 1])
            alike_BN[row, known.text[here]] += weight * known.count[here]  # no text comes twice
        yield alike_BN


def _columns(counts: _Counts, column_V: np.ndarray) -> np.ndarray:
    """The pieces that have a column, as a dense matrix [N,K]."""
    at = column_V[counts.piece]
    there = at >= 0
    dense_NK = np.zeros((counts.texts, column_V.max(initial=-1) + 1), np.float32)
    dense_NK[counts.text[there], at[there]] = counts.count[there]
    return dense_NK


def _pieces(text: str, lengths: Sequence[int]) -> Iterator[str]:
    return (text[i : i + n] for n in lengths for i in range(len(text) - n + 1))


BASELINES = {
    "most_frequent": Baseline(_most_frequent, "most frequent text"),
    "copy": Baseline(_copy, "copy of the source"),
    "nearest": Baseline(_nearest, "nearest neighbour"),
    "lead": Baseline(_lead, f"first {LEAD} words"),
    "naive_bayes": Baseline(_naive_bayes, "naive Bayes"),
}
