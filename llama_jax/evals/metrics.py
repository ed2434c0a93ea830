"""How well texts that were said agree with texts that are right, as shares from 0 to 1.

figure("chrf", ["the red one"], ["a red one"])    (0.70, 0.70, 0.70): value, and a 95 % interval

A metric is a row of statistics for each example and what their sums are worth. So a figure of a set
is that of its packages, and sets drawn from it by the bootstrap cost a sum each.
"""

import functools
import importlib
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from llama_jax.errors import UserError, nearest
from llama_jax.evals.bootstrap import Figure, interval

Texts = Sequence[str]
CHARACTERS, WORDS = 6, 4  # the longest n-grams of chrF and of BLEU
CHINESE = re.compile(r"[\u3400-\u4dbf\u4e00-\u9fff]")


@dataclass(frozen=True)
class Metric:
    """One way to judge.

    Attributes:
      statistics: texts said and right ones to a row of numbers for each example, [N,S].
      value: sums of such rows, [R,S], to shares [R].
    """

    statistics: Callable[[Texts, Texts], np.ndarray]
    value: Callable[[np.ndarray], np.ndarray]


def figure(name: str, said: Texts, right: Texts) -> Figure:
    """A metric over a set of examples, with its 95 % interval.

    Args:
      name: one of `METRICS`.
      said: what a model, or a baseline, said to each example.
      right: what is right.

    Raises:
      UserError: no such metric, not as many texts said as right, or a package is missing.
    """
    if name not in METRICS:
        raise UserError(
            f"no metric {name!r}; there are {', '.join(METRICS)}{nearest(name, METRICS)}"
        )
    if len(said) != len(right):
        raise UserError(f"{len(said)} texts said and {len(right)} right ones; expected as many")
    metric = METRICS[name]
    return interval(metric.statistics(said, right), metric.value)


def _same(said: Texts, right: Texts) -> np.ndarray:
    pairs = zip(said, right, strict=True)
    return np.array([[a.strip() == b.strip(), 1] for a, b in pairs], np.float64)


def _mean(sums: np.ndarray) -> np.ndarray:
    return sums[:, 0] / np.maximum(sums[:, 1], 1)


def _by_label(said: Texts, right: Texts) -> np.ndarray:
    """Of each label that is right somewhere: whether it was said rightly, said, and right."""
    labels = sorted({text.strip() for text in right})
    of = lambda texts: np.array([[t.strip() == label for label in labels] for t in texts])  # noqa: E731
    said_NL, right_NL = of(said), of(right)
    return np.concatenate([said_NL & right_NL, said_NL, right_NL], axis=1).astype(np.float64)


def _macro_f1(sums: np.ndarray) -> np.ndarray:
    both, said, right = np.split(sums, 3, axis=1)
    there = np.maximum(np.sum(said + right > 0, axis=1), 1)
    return np.sum(2 * both / np.maximum(said + right, 1), axis=1) / there


def _chrf_counts(said: Texts, right: Texts) -> np.ndarray:
    """For each length of n-gram: those said, those right, and those that are both."""
    ngrams = _package("sacrebleu.metrics.helpers", "sacrebleu").extract_all_char_ngrams

    def row(a: str, b: str) -> list[int]:
        found = []
        for mine, theirs in zip(ngrams(a, CHARACTERS), ngrams(b, CHARACTERS), strict=True):
            # What is said of a length that no right text has is not held against it.
            found += [mine.total() if theirs else 0, theirs.total(), (mine & theirs).total()]
        return found

    return np.array([row(a, b) for a, b in zip(said, right, strict=True)], np.float64)


def _chrf(sums: np.ndarray) -> np.ndarray:
    """F2 of the means of precision and recall over lengths (Popović 2015), as sacrebleu has it."""
    said, right, both = (sums[:, i::3] for i in range(3))
    there = (said > 0) & (right > 0)
    lengths = np.maximum(there.sum(axis=1), 1)
    precision = np.sum(np.where(there, both / np.maximum(said, 1), 0), axis=1) / lengths
    recall = np.sum(np.where(there, both / np.maximum(right, 1), 0), axis=1) / lengths
    return 5 * precision * recall / np.maximum(4 * precision + recall, np.finfo(float).tiny)


def _bleu_counts(said: Texts, right: Texts) -> np.ndarray:
    """Right and all n-grams of each length, then the lengths of both texts.

    Words as in WMT's evaluations (13a); characters (zh) where the right text has Chinese ones, or
    most of the set have: "%(count)s" is cut as its neighbours are.
    """
    make = _package("sacrebleu", "sacrebleu").BLEU
    # By sentence the order only changes a score that is not used, and else brings a warning.
    words, characters = make(effective_order=True), make(effective_order=True, tokenize="zh")
    chinese_N = [bool(CHINESE.search(text)) for text in right]
    mostly = 2 * sum(chinese_N) > len(right)

    def row(a: str, b: str, chinese: bool) -> list[int]:
        found = (characters if chinese or mostly else words).sentence_score(a, [b])
        return [*found.counts, *found.totals, found.sys_len, found.ref_len]

    return np.array([row(*one) for one in zip(said, right, chinese_N, strict=True)], np.float64)


def _bleu(sums: np.ndarray) -> np.ndarray:
    """Papineni et al. 2002, of whole corpora."""
    compute = _package("sacrebleu", "sacrebleu").BLEU.compute_bleu
    found = []
    for row in sums.astype(int).tolist():
        counts, totals, (said, right) = row[:WORDS], row[WORDS : 2 * WORDS], row[2 * WORDS :]
        found.append(compute(counts, totals, said, right, smooth_method="exp").score / 100)
    return np.array(found)


def _rouge(kind: str, said: Texts, right: Texts) -> np.ndarray:
    scorer = _scorer(kind)
    pairs = zip(said, right, strict=True)
    return np.array([[scorer.score(b, a)[kind].fmeasure, 1] for a, b in pairs], np.float64)


@functools.cache
def _scorer(kind: str) -> Any:
    """Words as they are, without stemming: runs of the letters a to z and of digits."""
    rouge = _package("rouge_score.rouge_scorer", "rouge-score")
    return rouge.RougeScorer([kind])


def _package(module: str, name: str) -> Any:
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError:
        raise UserError(
            f"package {name!r} is not installed, which texts are judged with; "
            "try: pip install 'llama-jax[tasks]'"
        ) from None


METRICS = {
    "exact": Metric(_same, _mean),
    "accuracy": Metric(_same, _mean),
    "macro_f1": Metric(_by_label, _macro_f1),
    "chrf": Metric(_chrf_counts, _chrf),
    "bleu": Metric(_bleu_counts, _bleu),
    "rouge_1": Metric(functools.partial(_rouge, "rouge1"), _mean),
    "rouge_l": Metric(functools.partial(_rouge, "rougeL"), _mean),
}
