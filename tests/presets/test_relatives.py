"""The relatives of Llama: parameter counts to the unit, and the switches in which they differ."""

import pytest

from llama_jax import families, presets
from llama_jax.families.sizes import sizes

# Counted from the shapes of our presets, so a change here is a change of a preset. No test compares
# them with the published files. See test_presets.py.
PARAMETERS = {
    "mistral_7b": 7_241_732_096,
    "mistral_7b_v3": 7_248_023_552,
    "smollm3_3b": 3_075_098_624,
    "qwen3_0_6b": 596_049_920,
    "qwen3_8b": 8_190_735_360,
    "cwm_32b": 32_581_097_472,
}
FAMILIES = {"mistral_7b": "mistral", "smollm3_3b": "smollm3", "qwen3_8b": "qwen3", "cwm_32b": "cwm"}


@pytest.mark.parametrize("name", FAMILIES)
def test_a_preset_is_of_the_family_that_alone_has_words_for_it(name):
    model = presets.get(name).model
    family = families.describing(model, "huggingface")
    assert family.name == FAMILIES[name]
    assert family.huggingface.model(family.huggingface.config(model)) == model


def test_patterns_are_as_short_as_they_can_be():
    lengths = {name: len(presets.get(name).model.stack.pattern) for name in PARAMETERS}
    assert lengths["mistral_7b"] == lengths["qwen3_8b"] == 1
    assert lengths["smollm3_3b"] == lengths["cwm_32b"] == 4
    assert sizes(presets.get("smollm3_3b").model).rotated.count(False) == 9
    assert sizes(presets.get("cwm_32b").model).windows[:5] == (None, 8192, 8192, 8192, None)
