"""The roofline of a step, by hand."""

import pytest

from llama_jax.chips import CHIPS, OVERLAP
from llama_jax.plan.cost import Sent, of, updated
from llama_jax.train.flops import Work

CHIP = CHIPS["v5p"]
H = 64
SECOND = CHIP.flops * CHIP.efficiency  # FLOPs that take one


UPDATE = updated(4e9, 8e9)  # a billion parameters, float32, with two moments


def cost(work=SECOND, moved=0.0, weights=0.0, activations=0.0, attention=0.0, offloaded=0.0):
    sent = Sent(weights, activations, 0.0)
    return of(CHIP, Work(work, attention), H, work / 2, 1000.0, UPDATE, moved, sent, offloaded)


def test_products_alone_take_their_time_and_the_update_its_own():
    found = cost()
    assert found.products == pytest.approx(1)
    assert found.seconds == pytest.approx(1 + UPDATE / CHIP.bandwidth)
    assert found.rate == pytest.approx(1000 / found.seconds)
    assert found.mfu == pytest.approx(CHIP.efficiency / 2 / found.seconds)


def test_memory_counts_where_it_takes_longer_than_products():
    assert cost(moved=0.5 * CHIP.bandwidth).seconds == pytest.approx(cost().seconds)
    assert cost(moved=2 * CHIP.bandwidth).seconds == pytest.approx(cost().seconds + 1)


def test_gathers_of_weights_hide_behind_products_and_sums_of_activations_do_not():
    assert cost(weights=0.5).exposed == pytest.approx(0.5 * (1 - OVERLAP))
    assert cost(activations=0.5).exposed == pytest.approx(0.5)
    # No more can be hidden than there is to hide it behind.
    assert cost(weights=3.0).exposed == pytest.approx(3.0 - 1)


def test_copies_to_the_host_hide_behind_the_pass_in_which_they_go():
    behind_both = OVERLAP * 0.25 * CHIP.host_link
    assert cost(offloaded=behind_both).exposed == 0
    assert cost(offloaded=behind_both).host == pytest.approx(2 * OVERLAP * 0.25)
    # Longer than the forward pass, which is a quarter, and not than the backward pass.
    longer = cost(offloaded=behind_both + 0.1 * CHIP.host_link)
    assert longer.exposed == pytest.approx(0.1)
    assert longer.seconds == pytest.approx(cost().seconds + 0.1)


def test_an_update_in_bfloat16_moves_half():
    assert UPDATE == 28e9  # weight, two moments and gradient read, the first three written
    assert updated(2e9, 4e9) == UPDATE / 2


def test_heads_that_fill_half_of_the_matrix_unit_take_attention_twice_as_long():
    assert cost(attention=SECOND / 4).products == pytest.approx(1 + 1 / 4)
    assert [CHIPS[name].filled(128) for name in ("v5p", "v6e", "h100")] == [1.0, 0.5, 1.0]
