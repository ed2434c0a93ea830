"""Two segments and what they are to each other: next sentence (BERT), sentence order (ALBERT).

A text here is an int array [n, 2]: token id and word index (pieces of one word share an index).

Sources: google-research/bert `create_pretraining_data.py`; Lan et al. 2020 (SOP).
"""

from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np

from llama_jax.checked import checked
from llama_jax.data.checks import share

Documents = Sequence[Sequence[np.ndarray]]  # documents of sentences, each [n, 2]
IS_NEXT, RANDOM = 0, 1
IN_ORDER, SWAPPED = 0, 1
UNASKED = -1  # of a label that a pair has not

Cut = Literal["tokens", "sentences"]


@checked
class Negatives:
    """Where the second segment of a pair comes from that is not the next one.

    Attributes:
      same: share of these that come from another place of the same document, if it has one; the
        rest, and all of BERT's, are from other documents.
    """

    same: float = 0.0

    def __post_init__(self) -> None:
        """Checks the value."""
        share(self, "same")

    def place(
        self,
        documents: Documents,
        document: int,
        taken: tuple[int, int],
        rng: np.random.Generator,
    ) -> tuple[Sequence[np.ndarray], int]:
        """Sentences, and which of them the segment begins with.

        Args:
          documents: at least two, or all the negatives' document has another place.
          document: which one the first segment is of.
          taken: the sentences [start, end) of the first segment; `end` would be the next one.
          rng: source of all choices.
        """
        start, end = taken
        if self.same and rng.random() < self.same:
            own = documents[document]
            places = [*range(start), *range(end + 1, len(own))]
            if places:
                begin = places[int(rng.integers(len(places)))]
                return (own[:start] if begin < start else own), begin
        other = int(rng.integers(len(documents) - 1))
        other += other >= document
        return documents[other], int(rng.integers(len(documents[other])))


class Pair(NamedTuple):
    """Two segments [n, 2], their label, and how many sentences of the document were used up.

    `order` is a second label, of pairs that are asked for both.
    """

    first: np.ndarray
    second: np.ndarray
    label: int
    used: int
    order: int = UNASKED


ELSEWHERE = Negatives()  # BERT's


def next_sentence_pair(
    documents: Documents,
    document: int,
    start: int,
    length: int,
    rng: np.random.Generator,
    short: float = 0.1,
    negatives: Negatives = ELSEWHERE,
    cut: Cut = "tokens",
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
      negatives: where the second part comes from instead.
      cut: what a segment that is too long loses: tokens at its ends, or a last sentence that does
        not fit whole.
    """
    chunk, target = _chunk(documents[document], start, length, rng, short, cut)
    split = 1 if len(chunk) < 2 else int(rng.integers(1, len(chunk)))
    first = join(chunk[:split])
    if len(chunk) > 1 and rng.random() < 0.5:
        second = join(chunk[split:])
        return Pair(*truncate(first, second, length, rng), IS_NEXT, len(chunk))
    sentences, begin = negatives.place(documents, document, (start, start + split), rng)
    end = _filled(sentences, begin, target - len(first), cut)
    second = join(sentences[begin:end])
    return Pair(*truncate(first, second, length, rng), RANDOM, split)


def sentence_pair(
    documents: Documents,
    document: int,
    start: int,
    length: int,
    rng: np.random.Generator,
    short: float = 0.1,
    negatives: Negatives = ELSEWHERE,
    cut: Cut = "tokens",
) -> Pair:
    """Makes one example for both questions, a third of each kind (StructBERT's three classes).

    The second segment follows the first, or comes before it, or is of another place. The label of
    NSP is for the first and the last kind, that of SOP (`order`) for the first two; the other is
    `UNASKED`. Source: Wang et al. 2019 (arXiv:1908.04577). Arguments as of `next_sentence_pair`.
    """
    if rng.random() < 1 / 3:
        chunk, _ = _chunk(documents[document], start, length, rng, short, cut)
        if len(chunk) > 1:
            split = int(rng.integers(1, len(chunk)))
            parts = truncate(join(chunk[:split]), join(chunk[split:]), length, rng)
            return Pair(parts[1], parts[0], UNASKED, len(chunk), SWAPPED)
    pair = next_sentence_pair(documents, document, start, length, rng, short, negatives, cut)
    return pair._replace(order=IN_ORDER) if pair.label == IS_NEXT else pair


def sentence_order_pair(
    documents: Documents,
    document: int,
    start: int,
    length: int,
    rng: np.random.Generator,
    short: float = 0.1,
    cut: Cut = "tokens",
) -> Pair:
    """Makes one SOP example: two consecutive segments, in half of the cases swapped (ALBERT).

    A chunk of one sentence (the last of a document, or a long one) is split inside it.
    """
    chunk, _ = _chunk(documents[document], start, length, rng, short, cut)
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
    sentences: Sequence[np.ndarray],
    start: int,
    length: int,
    rng: np.random.Generator,
    short: float,
    cut: Cut,
) -> tuple[Sequence[np.ndarray], int]:
    """The sentences from `start` that reach the target length, and that length."""
    target = int(rng.integers(2, length + 1)) if rng.random() < short else length
    return sentences[start : _filled(sentences, start, target, cut)], target


def _filled(sentences: Sequence[np.ndarray], begin: int, size: int, cut: Cut) -> int:
    """Behind the sentence from `begin` on that reaches `size`, or the last that fits; one at least.

    A second sentence that does not fit is taken all the same where the first leaves half of `size`
    empty: of long sentences there were no pairs otherwise.
    """
    held, end = 0, begin
    while end < len(sentences) and (held < size or end == begin):
        full = held + len(sentences[end]) > size
        if cut == "sentences" and full and end > begin and 2 * held > size:
            break
        held += len(sentences[end])
        end += 1
    return end
