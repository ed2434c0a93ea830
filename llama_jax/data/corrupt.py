"""What pre-training hides: masked tokens, sentence pairs, spans. Pure NumPy, an explicit rng.

A text here is an int array [n, 2]: token id and word index (pieces of one word share an index).

Sources: google-research/bert `create_pretraining_data.py` (MLM, NSP), Joshi et al. 2020 (spans),
Lan et al. 2020 (SOP), t5 `random_spans_helper` and `random_spans_noise_mask` (span corruption).
"""

import dataclasses
from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np

from llama_jax.errors import UserError, nearest

Documents = Sequence[Sequence[np.ndarray]]  # documents of sentences, each [n, 2]
IS_NEXT, RANDOM = 0, 1
IN_ORDER, SWAPPED = 0, 1


@dataclasses.dataclass(frozen=True)
class Masking:
    """How MLM chooses and hides tokens.

    Attributes:
        rate: Share of a row's tokens to predict.
        unit: Chosen as one: a token, a whole word, or a span of geometric length.
        sampling: "count" takes exactly max(1, round(rate * n)) (BERT), "bernoulli" tosses a coin
            for each unit.
        predictions: Static number of predictions a row has room for; None for `rate` of the
            row's length (and four standard deviations more under "bernoulli").
        mask: Share of the chosen that become `<mask>`.
        random: Share of the chosen that become a random token; the rest is kept.
        mean_span: Mean length of a span, in tokens.
        longest_span: Longer spans are cut to this.
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
        for field, choices in (("unit", ("token", "whole_word", "span")),
                               ("sampling", ("count", "bernoulli"))):  # fmt: skip
            value = getattr(self, field)
            if value not in choices:
                raise UserError(
                    f"{field}={value!r}; expected {', '.join(choices)}.{nearest(value, choices)}"
                )
        if not 0 < self.rate < 1 or self.mask < 0 or self.random < 0 or self.mask + self.random > 1:
            raise UserError(
                f"rate={self.rate}, mask={self.mask}, random={self.random}; expected 0 < rate < 1 "
                "and mask + random <= 1; try Masking()."
            )

    def width(self, length: int) -> int:
        """Returns A, the static number of predictions of a row of `length` tokens."""
        if self.predictions is not None:
            return self.predictions
        mean = self.rate * length
        if self.sampling == "bernoulli":
            mean += 4 * np.sqrt(length * self.rate * (1 - self.rate))
        return min(length, max(1, round(mean)))


class Vocabulary(NamedTuple):
    """The ids that masking writes: `<mask>`, and random ones in [first, last)."""

    mask: int
    first: int
    last: int


def mask_tokens(
    text_T2: np.ndarray,
    rng: np.random.Generator,
    masking: Masking,
    vocabulary: Vocabulary,
    width: int,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Hides some tokens of one row.

    Args:
        text_T2: Ids and word indices; a word index below 0 marks a special token, never chosen.
        rng: Source of all choices.
        masking: How to choose and hide.
        vocabulary: The ids to write.
        width: The most predictions.

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
    noise = rng.integers(vocabulary.first, vocabulary.last, len(positions))
    order = np.argsort(positions)
    positions, draws, noise = positions[order], draws[order], noise[order]
    targets = ids_T[positions]
    replaced = np.where(draws < masking.mask + masking.random, noise, targets)
    ids_T[positions] = np.where(draws < masking.mask, vocabulary.mask, replaced)
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
        documents: At least two.
        document: Which document.
        start: Which sentence of it comes first.
        length: The most tokens of both segments together.
        rng: Source of all choices.
        short: How often the target length is a random shorter one.
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
    """Returns the sentences from `start` that reach the target length, and that length."""
    target = int(rng.integers(2, length + 1)) if rng.random() < short else length
    size, end = 0, start
    while end < len(sentences) and size < target:
        size += len(sentences[end])
        end += 1
    return sentences[start : max(end, start + 1)], target


def span_lengths(inputs: int, rate: float = 0.15, mean_span: float = 3.0) -> tuple[int, int]:
    """Returns how many raw tokens fill exactly `inputs` corrupted ones, and the targets' length.

    Both lengths count the sentinels and one end token: 512 inputs take 568 tokens and give 114
    targets (t5 `random_spans_helper`).
    """

    def lengths(tokens: int) -> tuple[int, int]:
        noise, spans = _noise(tokens, rate, mean_span)
        return tokens - noise + spans + 1, noise + spans + 1

    tokens = inputs
    while lengths(tokens + 1)[0] <= inputs:
        tokens += 1
    targets = lengths(tokens)[1]
    if rate == 0.5 and targets > inputs:  # t5 keeps targets within inputs in this one case
        tokens, targets = tokens - 1, targets - 1
    return tokens, targets


def span_count(tokens: int, rate: float = 0.15, mean_span: float = 3.0) -> int:
    """Returns how many spans, and so sentinels, `tokens` raw tokens get."""
    return _noise(tokens, rate, mean_span)[1]


def corrupt_spans(
    ids: np.ndarray,
    rng: np.random.Generator,
    sentinels: Sequence[int],
    rate: float = 0.15,
    mean_span: float = 3.0,
) -> tuple[np.ndarray, np.ndarray]:
    """Replaces spans by sentinels; returns inputs and targets, neither with an end token.

    "a b c d e f" may become "a <extra_0> d e <extra_1>" and "<extra_0> b c <extra_1> f".
    A text of one token is hidden whole.
    """
    length = len(ids)
    if length < 2:
        return np.array(sentinels[:1]), np.array([*sentinels[:1], *ids])
    noise, spans = _noise(length, rate, mean_span)
    if spans > len(sentinels):
        raise UserError(
            f"{length} tokens need {spans} sentinels and the tokenizer has {len(sentinels)}; "
            f"try a shorter row, a longer mean_span, or training it with sentinels={spans}."
        )
    kept_lengths = _segments(length - noise, spans, rng)
    noise_lengths = _segments(noise, spans, rng)
    inputs, targets, at = [], [], 0
    for kept, hidden, sentinel in zip(kept_lengths, noise_lengths, sentinels, strict=False):
        inputs += [*ids[at : at + kept], sentinel]
        targets += [sentinel, *ids[at + kept : at + kept + hidden]]
        at += kept + hidden
    return np.array(inputs), np.array(targets)


def _noise(length: int, rate: float, mean_span: float) -> tuple[int, int]:
    """Returns the number of hidden tokens and of spans (half to even, as in t5).

    There are at most as many spans as kept tokens, so that one stands between any two.
    """
    noise = min(max(int(np.round(length * rate)), 1), length - 1)
    return noise, min(max(int(np.round(noise / mean_span)), 1), length - noise)


def _segments(total: int, count: int, rng: np.random.Generator) -> np.ndarray:
    """Cuts `total` into `count` random lengths of at least one."""
    cuts = np.sort(rng.permutation(total - 1)[: count - 1]) + 1
    return np.diff(np.concatenate([[0], cuts, [total]]))
