import numpy as np
import pytest

from llama_jax.data.corrupt import Masking, Replacements, mask_tokens
from llama_jax.errors import UserError

MASK, FIRST, LAST = 5, 16, 1000
REPLACEMENTS = Replacements(MASK, FIRST, LAST)


def rng(seed=0):
    return np.random.Generator(np.random.Philox(key=seed))


def row(words):
    """`<cls>` words `<sep>`; token ids count up from 100."""
    words = [-1, *words, -1]
    ids = [3, *range(100, 98 + len(words)), 4]
    return np.array([ids, words]).T


def test_masking_writes_exactly_this():
    text = row([0, 0, 1, 2, 3, 3, 3, 4, 5, 6, 7, 8])
    ids, positions, targets = mask_tokens(text, rng(2), Masking(rate=0.5), REPLACEMENTS, 7)
    assert positions.tolist() == [3, 4, 5, 8, 10, 11, 12]
    assert targets.tolist() == [102, 103, 104, 107, 109, 110, 111]
    # Of the seven, three are masked, two are replaced (at 10 and 11) and two kept (at 5 and 12).
    assert ids.tolist() == [3, 100, 101, 5, 5, 104, 105, 106, 5, 108, 779, 932, 111, 4]


def test_chosen_tokens_are_masked_replaced_and_kept_80_10_10():
    text = row(range(62))
    masked = replaced = kept = 0
    for seed in range(3000):
        ids, positions, targets = mask_tokens(text, rng(seed), Masking(), REPLACEMENTS, 10)
        now = ids[positions]
        masked += (now == MASK).sum()
        kept += (now == targets).sum()
        replaced += ((now != MASK) & (now != targets)).sum()
        assert ids[0] == 3 and ids[-1] == 4  # special tokens are never chosen
        assert (now[(now != MASK)] >= FIRST).all()
        assert (np.delete(ids, positions) == np.delete(text[:, 0], positions)).all()
    shares = np.array([masked, replaced, kept]) / 30_000
    assert np.abs(shares - [0.8, 0.1, 0.1]).max() < 0.007  # four standard deviations


@pytest.mark.parametrize(("length", "count"), [(2, 1), (6, 1), (20, 3), (64, 10), (100, 10)])
def test_count_sampling_takes_a_rounded_share_at_least_one_at_most_the_width(length, count):
    text = row(range(length - 2)) if length > 2 else row([0])
    assert len(mask_tokens(text, rng(), Masking(), REPLACEMENTS, 10)[1]) == count


def test_bernoulli_sampling_takes_the_share_on_average():
    text = row(range(62))
    masking = Masking(sampling="bernoulli")
    width = masking.width(64)
    counts = [len(mask_tokens(text, rng(s), masking, REPLACEMENTS, width)[1]) for s in range(2000)]
    assert abs(np.mean(counts) - 0.15 * 62) < 0.25
    assert np.std(counts) > 2 and max(counts) <= width == 21


@pytest.mark.parametrize("sampling", ["count", "bernoulli"])
def test_whole_words_are_chosen_with_all_their_pieces(sampling):
    words = [0, 0, 0, 1, 2, 2, 3, 4, 4, 4, 4, 5]
    text = row(words)
    masking = Masking(rate=0.4, unit="whole_word", sampling=sampling)
    for seed in range(200):
        _, positions, _ = mask_tokens(text, rng(seed), masking, REPLACEMENTS, 12)
        chosen = {words[p - 1] for p in positions}
        assert len(positions) == sum(w in chosen for w in words)


def test_a_span_shares_one_fate_and_never_crosses_a_special_token():
    text = np.concatenate([row(range(30)), row(range(30))[1:]])
    masking = Masking(rate=0.3, unit="span", mean_span=4.0)
    lengths = []
    for seed in range(300):
        ids, positions, targets = mask_tokens(text, rng(seed), masking, REPLACEMENTS, 18)
        assert not set(positions) & {0, 31, 62}
        state = np.where(ids[positions] == MASK, 0, np.where(ids[positions] == targets, 1, 2))
        runs = np.split(state, np.flatnonzero(np.diff(positions) > 1) + 1)
        lengths += [len(run) for run in runs]
    assert 2.5 < np.mean(lengths) < 5.5


def test_a_row_of_special_tokens_is_left_alone():
    ids, positions, targets = mask_tokens(row([]), rng(), Masking(), REPLACEMENTS, 3)
    assert ids.tolist() == [3, 4] and len(positions) == len(targets) == 0


def test_the_same_rng_masks_the_same():
    text = row(range(40))
    first, second = (mask_tokens(text, rng(7), Masking(), REPLACEMENTS, 9) for _ in range(2))
    assert all((a == b).all() for a, b in zip(first, second, strict=True))


def test_the_static_width_follows_the_rate():
    assert Masking().width(64) == 10
    assert Masking(predictions=20).width(64) == 20
    assert Masking(rate=0.4).width(24) == 10


def test_wrong_values_are_refused_with_the_nearest():
    with pytest.raises(UserError, match="Did you mean 'whole_word'"):
        Masking(unit="whole_words")  # pyright: ignore
    with pytest.raises(UserError, match=r"try Masking\(\)"):
        Masking(rate=1.5)
