"""Span corruption: holes in a text and what filled them. Pure NumPy, an explicit rng.

Source: t5 `random_spans_helper` and `random_spans_noise_mask` (Raffel et al. 2020).
"""

from collections.abc import Sequence

import numpy as np

from llama_jax.errors import UserError


def span_lengths(inputs: int, rate: float = 0.15, mean_span: float = 3.0) -> tuple[int, int]:
    """How many raw tokens fill exactly `inputs` corrupted ones, and the targets' length.

    Both lengths count the sentinels and one end token: 512 inputs take 568 tokens and give 114
    targets (t5 `random_spans_helper`).
    """

    def lengths(tokens: int) -> tuple[int, int]:
        noise, spans = _noise(tokens, rate, mean_span)
        return tokens - noise + spans + 1, noise + spans + 1

    tokens = 2
    while lengths(tokens + 1)[0] <= inputs:
        tokens += 1
    targets = lengths(tokens)[1]
    if rate == 0.5 and targets > inputs:  # t5 keeps targets within inputs in this one case
        tokens, targets = tokens - 1, targets - 1
    return tokens, targets


def span_count(tokens: int, rate: float = 0.15, mean_span: float = 3.0) -> int:
    """How many spans, and so sentinels, `tokens` raw tokens get."""
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
            f"try a shorter row, a longer mean_span, or training it with sentinels={spans}"
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
    """The number of hidden tokens and of spans (half to even, as in t5).

    There are at most as many spans as kept tokens, so that one stands between any two.
    """
    noise = min(max(int(np.round(length * rate)), 1), length - 1)
    return noise, min(max(int(np.round(noise / mean_span)), 1), length - noise)


def _segments(total: int, count: int, rng: np.random.Generator) -> np.ndarray:
    """Cuts `total` into `count` random lengths of at least one."""
    cuts = np.sort(rng.permutation(total - 1)[: count - 1]) + 1
    return np.diff(np.concatenate([[0], cuts, [total]]))
