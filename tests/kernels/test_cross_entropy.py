"""Token cross-entropy against values worked by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from llama_jax.kernels.cross_entropy import accuracy, cross_entropy

# Logits log(p), so that the probabilities are plain: 0.5, 0.25, 0.25 and 0.125, 0.75, 0.125.
LOGITS = np.log(np.array([[0.5, 0.25, 0.25], [0.125, 0.75, 0.125]], np.float32))


def test_sum_and_count_by_hand():
    total, count = cross_entropy(LOGITS, jnp.array([0, 2]))
    assert total == pytest.approx(np.log(2) + np.log(8), rel=1e-6)
    assert count == 2


def test_rows_of_weight_zero_add_nothing_even_if_infinite():
    logits = jnp.array([[0.0, -jnp.inf], [0.0, 0.0]])
    targets, weights = jnp.array([1, 0]), jnp.array([0.0, 1.0])
    total, count = cross_entropy(logits, targets, weights)
    assert total == pytest.approx(np.log(2), rel=1e-6)
    assert count == 1
    grad = jax.grad(lambda x: cross_entropy(x, targets, weights)[0])(
        jnp.array([[0.0, 9.0], [0, 0]])
    )
    np.testing.assert_allclose(grad, [[0, 0], [-0.5, 0.5]], atol=1e-7)


def test_ignored_targets_may_be_out_of_range():
    total, count = cross_entropy(LOGITS, jnp.array([-100, 1]), jnp.array([0.0, 2.0]))
    assert total == pytest.approx(-2 * np.log(0.75), rel=1e-6)
    assert count == 2


def test_smoothing_spreads_a_share_over_the_vocabulary():
    total, _ = cross_entropy(LOGITS[:1], jnp.array([0]), label_smoothing=0.3)
    # Target 0.7 + 0.1, 0.1, 0.1.
    assert total == pytest.approx(-(0.8 * np.log(0.5) + 0.2 * np.log(0.25)), rel=1e-6)


def test_z_loss_adds_the_square_of_log_z():
    total, _ = cross_entropy(LOGITS + 3.0, jnp.array([0, 2]), z_loss=0.1)
    assert total == pytest.approx(np.log(2) + np.log(8) + 2 * 0.1 * 9, rel=1e-5)


def test_bfloat16_logits_are_summed_in_float32():
    total, count = cross_entropy(jnp.zeros((4096, 2), jnp.bfloat16), jnp.zeros(4096, int))
    assert total.dtype == count.dtype == jnp.float32
    assert total == pytest.approx(4096 * np.log(2), rel=1e-6)


def test_accuracy_counts_by_weight():
    right, count = accuracy(LOGITS, jnp.array([0, 0]), jnp.array([1.0, 3.0]))
    assert (right, count) == (1, 4)
