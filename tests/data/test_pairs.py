import numpy as np
import pytest

from llama_jax.data.pairs import (
    IN_ORDER,
    IS_NEXT,
    RANDOM,
    SWAPPED,
    UNASKED,
    Negatives,
    join,
    next_sentence_pair,
    sentence_order_pair,
    sentence_pair,
    truncate,
)


def sentence(document, number, length):
    """Token ids tell their document, sentence and place."""
    ids = document * 10_000 + number * 100 + np.arange(length)
    return np.stack([ids, np.arange(length)], 1)


DOCUMENTS = [[sentence(d, s, 3 + (d * 7 + s * 5) % 9) for s in range(12)] for d in range(1, 5)] + [
    [sentence(5, 0, 40)]
]


def rng(seed):
    return np.random.Generator(np.random.Philox(key=seed))


def origin(segment):
    """The documents and sentences that a segment's tokens come from, in order."""
    documents = sorted(set((segment[:, 0] // 10_000).tolist()))
    sentences = list(dict.fromkeys((segment[:, 0] // 100 % 100).tolist()))
    return documents, sentences


def pairs(make, document=0, start=2, length=40, count=600, **options):
    return [make(DOCUMENTS, document, start, length, rng(s), **options) for s in range(count)]


def test_next_pairs_continue_and_random_pairs_come_from_another_document():
    for pair in pairs(next_sentence_pair):
        (first_documents, first), (second_documents, second) = map(
            origin, (pair.first, pair.second)
        )
        assert first_documents == [1] and first == list(range(first[0], first[-1] + 1))
        if pair.label == IS_NEXT:
            assert second_documents == [1] and second[0] == first[-1] + 1
        else:
            assert pair.label == RANDOM and 1 not in second_documents
            assert len(second_documents) == 1


def test_half_of_the_pairs_are_random():
    labels = [pair.label for pair in pairs(next_sentence_pair, count=3000, short=0.0)]
    assert abs(np.mean(labels) - 0.5) < 0.04


def test_one_sentence_has_no_next_one():
    assert {pair.label for pair in pairs(next_sentence_pair, start=11)} == {RANDOM}
    assert {pair.label for pair in pairs(next_sentence_pair, document=4, start=0)} == {RANDOM}


def test_replaced_sentences_are_not_used_up():
    for pair in pairs(next_sentence_pair, short=0.0, length=60):
        first, second = origin(pair.first)[1], origin(pair.second)[1]
        if pair.label == RANDOM:
            assert pair.used >= len(first) and pair.used < 11
        else:
            assert pair.used >= len(first) + len(second)


def test_walking_by_what_was_used_up_reaches_every_sentence_as_bert_does():
    for seed in range(30):
        generator, start, seen = rng(seed), 0, set()
        while start < 12:
            pair = next_sentence_pair(DOCUMENTS, 0, start, 200, generator)
            seen |= set(range(start, start + pair.used))
            start += pair.used
        assert seen == set(range(12))


def test_pairs_fit_and_a_tenth_aims_at_less():
    sizes = [len(p.first) + len(p.second) for p in pairs(next_sentence_pair, length=30)]
    assert max(sizes) <= 30 and min(len(p.first) for p in pairs(next_sentence_pair)) >= 1
    full = [len(p.first) + len(p.second) for p in pairs(next_sentence_pair, length=30, short=0.0)]
    assert np.mean(full) > np.mean(sizes)


def test_sentence_order_swaps_half_of_the_same_pairs():
    found = pairs(sentence_order_pair, short=0.0)
    assert abs(np.mean([p.label for p in found]) - 0.5) < 0.08
    for pair in found:
        before, after = pair.first, pair.second
        if pair.label == SWAPPED:
            before, after = after, before
        else:
            assert pair.label == IN_ORDER
        assert origin(after)[1][0] == origin(before)[1][-1] + 1


def test_a_single_sentence_is_split_inside_for_sentence_order():
    for pair in pairs(sentence_order_pair, document=4, start=0, length=20, count=50):
        parts = (pair.first, pair.second) if pair.label == IN_ORDER else (pair.second, pair.first)
        assert np.concatenate(parts)[:, 0].tolist() == DOCUMENTS[4][0][:20, 0].tolist()
        assert len(pair.first) and len(pair.second)


def test_truncation_shortens_the_longer_side_at_both_ends():
    first, second = sentence(1, 0, 50), sentence(2, 0, 10)
    a, b = truncate(first, second, 30, rng(1))
    assert (len(a), len(b)) == (20, 10)
    assert a[0, 0] > first[0, 0] and a[-1, 0] < first[-1, 0]
    a, b = truncate(first, sentence(2, 0, 50), 31, rng(1))
    assert sorted([len(a), len(b)]) == [15, 16]


def test_joined_sentences_share_no_word():
    joined = join([sentence(1, 0, 2), sentence(1, 1, 3)])
    assert joined[:, 1].tolist() == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("make", [next_sentence_pair, sentence_order_pair])
def test_the_same_rng_gives_the_same_pair(make):
    one, two = (make(DOCUMENTS, 1, 3, 25, rng(3)) for _ in range(2))
    assert (one.first == two.first).all() and (one.second == two.second).all()
    assert one.label == two.label


def test_a_negative_of_the_same_document_is_neither_the_next_part_nor_the_first():
    found = pairs(next_sentence_pair, start=4, negatives=Negatives(same=1))
    random = [pair for pair in found if pair.label == RANDOM]
    befores = 0
    for pair in random:
        (_, first), (documents, second) = origin(pair.first), origin(pair.second)
        assert documents == [1] and second[0] != first[-1] + 1
        assert not set(first) & set(second)
        befores += second[0] < first[0]
    assert 0 < befores < len(random)


def test_where_a_document_has_no_other_place_the_negative_is_of_another():
    found = pairs(next_sentence_pair, document=4, start=0, negatives=Negatives(same=1))
    assert all(5 not in origin(pair.second)[0] for pair in found)


def test_a_share_of_the_negatives_comes_from_the_same_document():
    found = pairs(next_sentence_pair, count=2000, negatives=Negatives(same=0.25))
    own = [origin(pair.second)[0] == [1] for pair in found if pair.label == RANDOM]
    assert abs(np.mean(own) - 0.25) < 0.06  # some four deviations of 1,000 draws


def test_pairs_that_are_cut_by_sentences_hold_whole_ones():
    for make in (next_sentence_pair, sentence_order_pair, sentence_pair):
        for pair in pairs(make, start=2, length=40, count=200, short=0.0, cut="sentences"):
            assert len(pair.first) + len(pair.second) <= 40
            if pair.label == RANDOM:
                continue  # of another document, whose single sentence of 40 tokens fits nowhere
            for segment in (pair.first, pair.second):
                ids = segment[:, 0]
                wholes = [DOCUMENTS[0][number] for number in origin(segment)[1]]
                assert ids.tolist() == np.concatenate(wholes)[:, 0].tolist()


def test_pairs_for_both_questions_are_of_three_kinds_and_have_the_labels_of_theirs():
    found = pairs(sentence_pair, count=1500, short=0.0, length=60, cut="sentences")
    kinds = [(pair.label, pair.order) for pair in found]
    known = [(IS_NEXT, IN_ORDER), (UNASKED, SWAPPED), (RANDOM, UNASKED)]
    assert set(kinds) == set(known)
    for kind in known:
        assert abs(kinds.count(kind) / len(kinds) - 1 / 3) < 0.05
    for pair in found:
        (_, first), (documents, second) = origin(pair.first), origin(pair.second)
        if pair.order == SWAPPED:
            assert documents == [1] and first[0] == second[-1] + 1
        elif pair.order == IN_ORDER:
            assert documents == [1] and second[0] == first[-1] + 1
