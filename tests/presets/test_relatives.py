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
    "llama4_scout": 107_769_861_120,
    "llama4_maverick": 400_711_848_960,
}
FAMILIES = {"mistral_7b": "mistral", "smollm3_3b": "smollm3", "qwen3_8b": "qwen3", "cwm_32b": "cwm"}
FAMILIES |= {"llama4_scout": "llama4", "llama4_maverick": "llama4"}
FAMILIES |= {"llama4_scout_vision": "llama4_vision", "llama4_maverick_vision": "llama4_vision"}


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
    assert lengths["llama4_scout"] == lengths["llama4_maverick"] == 4
    assert sizes(presets.get("smollm3_3b").model).rotated.count(False) == 9
    assert sizes(presets.get("cwm_32b").model).windows[:5] == (None, 8192, 8192, 8192, None)


def test_the_layers_of_llama_4_are_those_of_its_papers():
    scout, maverick = (sizes(presets.get(f"llama4_{name}").model) for name in ("scout", "maverick"))
    assert scout.experts.count(None) == 0 and maverick.experts.count(None) == 24
    assert maverick.experts[1] is not None and maverick.experts[1].shared is not None
    for given in (scout, maverick):
        assert given.chunks == (8192, 8192, 8192, None) * 12
        assert given.rotated == (True, True, True, False) * 12
    assert scout.bare_norm and not maverick.bare_norm
