"""Activations by shapes: what each remat policy leaves on a device."""

import pytest

from llama_jax import presets
from llama_jax.layers.block import SAVED
from llama_jax.plan.activations import elements, stored

BLOCK = presets.get("llama3_1_8b").model.stack.pattern[0]
D, NH, KH, F = 4096, 32 * 128, 8 * 128, 14_336


def test_a_block_makes_its_queries_keys_gates_and_outputs():
    each = elements(BLOCK, D, 1)
    assert each["products"] == NH + 2 * KH + 2 * F + 2 * D
    assert each["keys"] == 2 * KH
    assert (each["attention"], each["hidden"], each["attn"]) == (NH, F, D)
    assert SAVED.keys() <= each.keys()


def test_a_tensor_axis_divides_heads_and_the_feed_forward():
    one, four = elements(BLOCK, D, 1), elements(BLOCK, D, 4)
    assert four["attention"] == one["attention"] / 4
    assert four["products"] == pytest.approx((one["products"] - 2 * D) / 4 + 2 * D)


def test_each_policy_stores_less_than_the_one_before():
    each = elements(BLOCK, D, 1)
    policies = [("none", ()), ("dots", ()), ("named", ("attention",)), ("block", ())]
    kept = [stored(each, D, remat, names) for remat, names in policies]
    assert kept == sorted(kept, reverse=True) and len(set(kept)) == len(kept)
    assert kept[2:] == [D + NH, D]
    assert stored(each, D, "named", ("attention", "hidden")) == D + NH + F
    assert stored(each, D, "offload", ("attention", "hidden")) == D


def test_what_is_offloaded_leaves_the_device():
    each = elements(BLOCK, D, 1)
    assert stored(each, D, "offload", ("input",)) == 0
    assert stored(each, D, "named", ("input", "q", "k", "v")) == D + NH + 2 * KH
