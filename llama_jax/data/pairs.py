"""Two segments and what they are to each other: next sentence (BERT), sentence order (ALBERT).

A text here is an int array [n, 2]: token id and word index (pieces of one word share an index).

Sources: google-research/bert `create_pretraining_data.py`; Lan et al. 2020 (SOP).
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

Documents = Sequence[Sequence[np.ndarray]]  # documents of sentences, each [n, 2]
IS_NEXT, RANDOM = 0, 1
IN_ORDER, SWAPPED = 0, 1


class Pair(NamedTuple):
    """Two segments [n, 2], their label, and how many sentences of the document were used up."""

    first: np.ndarray
    second: np.ndarray
    label: int
    used: int


def next_sentence_pair(
    documents: Documents,
    document: int,
    start: int,
    length: int,
    rng: np.random.Generator,
    short: float = 0.1,
) -> Pair:
    """Makes one NSP example from the sentence `start` of a document on, as BERT does.

    Sentences fill a chunk up to a target length; the chunk is split at a random sentence; in half
    of the cases, or when there is only one sentence, the second part comes from a random place of
    another document instead, and the sentences it replaced are not used up.

    Args:
      documents: at least two.
      document: which document.
      start: which sentence of it comes first.
      length: the most tokens of both segments together.
      rng: source of all choices.
      short: how often the target length is a random shorter one.
    """
    chunk, target = _chunk(documents[document], start, length, rng, short)
    split = 1 if len(chunk) < 2 else int(rng.integers(1, len(chunk)))
    first = join(chunk[:split])
    if len(chunk) > 1 and rng.random() < 0.5:
        second = join(chunk[split:])
        return Pair(*truncate(first, second, length, rng), IS_NEXT, len(chunk))
    other = int(rng.integers(len(documents) - 1))
    other += other >= document
    sentences = documents[other]
    begin = int(rng.integers(len(sentences)))
    size, end = 0, begin
    while end < len(sentences) and (size < target - len(first) or end == begin):
        size += len(sentences[end])
        end += 1
    second = join(sentences[begin:end])
    return Pair(*truncate(first, second, length, rng), RANDOM, split)


def sentence_order_pair(
    documents: Documents,
    document: int,
    start: int,
    length: int,
    rng: np.random.Generator,
    short: float = 0.1,
) -> Pair:
    """Makes one SOP example: two consecutive segments, in half of the cases swapped (ALBERT).

    A chunk of one sentence (the last of a document, or a long one) is split inside it.
    """
    chunk, _ = _chunk(documents[document], start, length, rng, short)
    if len(chunk) > 1:
        split = int(rng.integers(1, len(chunk)))
        parts = truncate(join(chunk[:split]), join(chunk[split:]), length, rng)
    else:
        whole = chunk[0][:length]
        split = int(rng.integers(1, len(whole))) if len(whole) > 1 else len(whole)
        parts = (whole[:split], whole[split:])
    if rng.random() < 0.5:
        return Pair(parts[1], parts[0], SWAPPED, len(chunk))
    return Pair(*parts, IN_ORDER, len(chunk))


def join(sentences: Sequence[np.ndarray]) -> np.ndarray:
    """Joins sentences [n, 2] and renumbers their words, so that none run together."""
    joined = np.concatenate(sentences)
    if len(sentences) > 1:
        tops = np.array([s[-1, 1] + 1 if len(s) else 0 for s in sentences])
        shift = np.cumsum(tops) - tops
        joined[:, 1] += np.repeat(shift, [len(s) for s in sentences])
    return joined


def truncate(
    first: np.ndarray, second: np.ndarray, length: int, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Shortens the longer of two segments, at a random end each time, until both fit."""
    spans = [[0, len(first)], [0, len(second)]]
    for front in rng.random(max(0, len(first) + len(second) - length)) < 0.5:
        sizes = [end - begin for begin, end in spans]
        longer = spans[0] if sizes[0] > sizes[1] else spans[1]
        if front:
            longer[0] += 1
        else:
            longer[1] -= 1
    return first[slice(*spans[0])], second[slice(*spans[1])]


def _chunk(
    sentences: Sequence[np.ndarray], start: int, length: int, rng: np.random.Generator, short: float
) -> tuple[Sequence[np.ndarray], int]:
    """The sentences from `start` that reach the target length, and that length."""
    target = int(rng.integers(2, length + 1)) if rng.random() < short else length
    size, end = 0, start
    while end < len(sentences) and size < target:
        size += len(sentences[end])
        end += 1
    return sentences[start : max(end, start + 1)], target
