"""Intervals: against the theory of shares, and that they are of the statistics' sums."""

import numpy as np
import pytest

from llama_jax.evals.bootstrap import SAMPLES, balanced, interval, mean, resampled


def test_the_interval_of_a_share_is_as_wide_as_theory_says():
    right = np.arange(400) < 300
    value, low, high = mean(right)
    error = np.sqrt(0.75 * 0.25 / 400)
    assert value == 0.75
    # A tenth of 1.96 standard errors: the ends are quantiles of 1,000 draws.
    assert low == pytest.approx(0.75 - 1.96 * error, abs=0.2 * error)
    assert high == pytest.approx(0.75 + 1.96 * error, abs=0.2 * error)


def test_two_evaluations_have_the_same_interval_and_more_examples_a_smaller_one():
    values = np.random.default_rng(1).random(100)
    assert mean(values) == mean(values)
    _, low, high = mean(values)
    _, less_low, less_high = mean(np.tile(values, 9))
    assert less_high - less_low == pytest.approx((high - low) / 3, rel=0.15)


def test_sets_are_drawn_with_replacement_from_all_examples():
    sums = resampled(np.array([[1.0, 0.0], [0.0, 1.0], [0.0, 1.0]]))
    assert sums.shape == (SAMPLES, 2)
    np.testing.assert_array_equal(sums.sum(axis=1), 3)
    assert set(sums[:, 0].tolist()) == {0, 1, 2, 3}
    assert sums[:, 0].mean() == pytest.approx(1, abs=0.1)  # three standard errors: 0.08


def test_a_figure_that_is_no_mean_is_taken_of_the_sums():
    rows = np.array([[1.0, 2.0], [5.0, 8.0], [3.0, 30.0]])
    value, low, high = interval(rows, lambda sums: sums[:, 0] / sums[:, 1])
    assert value == 9 / 40
    assert low == 0.1 and high == 0.625  # a set may hold the last example, or the second, alone


def test_of_no_examples_there_is_no_figure():
    assert np.isnan(mean([])).all()


def test_the_mean_of_two_sets_is_drawn_of_each_on_its_own():
    yes, no = np.arange(90) < 80, np.arange(300) < 150
    value, low, high = balanced(yes, no)
    assert value == pytest.approx((8 / 9 + 1 / 2) / 2)
    error = np.sqrt(8 / 81 / 90 + 1 / 4 / 300) / 2
    assert high - low == pytest.approx(2 * 1.96 * error, rel=0.15)
    assert np.isnan(balanced(yes, [])).all()
