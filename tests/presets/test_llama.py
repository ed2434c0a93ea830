"""The LLaMA series: parameter counts to the unit, and tables of rope, without making an array."""

import numpy as np
import pytest

from llama_jax.layers.rope import Llama3Rope, Rope

# The published checkpoints' counts, from the shapes of their tensors; see test_presets.py.
PARAMETERS = {
    "llama1_7b": 6_738_415_616,
    "llama1_13b": 13_015_864_320,
    "llama1_33b": 32_528_943_616,
    "llama1_65b": 65_285_660_672,
    "llama2_7b": 6_738_415_616,
    "llama2_13b": 13_015_864_320,
    "llama2_70b": 68_976_648_192,
    "code_llama_7b": 6_738_546_688,
    "code_llama_13b": 13_016_028_160,
    "code_llama_34b": 33_743_970_304,
    "llama3_8b": 8_030_261_248,
    "llama3_70b": 70_553_706_496,
    "llama3_1_8b": 8_030_261_248,
    "llama3_1_70b": 70_553_706_496,
    "llama3_1_405b": 405_853_388_800,
    "llama3_2_1b": 1_235_814_400,
    "llama3_2_3b": 3_212_749_824,
    "llama3_3_70b": 70_553_706_496,
    "smollm2_135m": 134_515_008,
}


def scaled64(theta, head_dim, factor, low, high, original):
    """The definition in float64."""
    f = theta ** -(np.arange(head_dim // 2) / (head_dim // 2))
    waves = original * f / (2 * np.pi)
    share = np.clip((waves - low) / (high - low), 0, 1) if high > low else (waves >= low) * 1.0
    return (1 - share) * f / factor + share * f


@pytest.mark.parametrize("factor", [8.0, 32.0])
@pytest.mark.parametrize("head_dim", [64, 128])
def test_scaled_frequencies_agree_with_float64(factor, head_dim):
    found = Llama3Rope(factor=factor).frequencies(head_dim)
    assert found.dtype == np.float32
    expected = scaled64(5e5, head_dim, factor, 1, 4, 8192)
    np.testing.assert_allclose(found, expected, rtol=1e-6)  # some float32 roundings
    plain = Rope(5e5).frequencies(head_dim)
    assert (found[:4] == plain[:4]).all() and found[-1] == plain[-1] / np.float32(factor)


def test_equal_bands_leave_nothing_in_between():
    found = Llama3Rope(factor=16.0, high=1.0).frequencies(128)
    plain = Rope(5e5).frequencies(128)
    np.testing.assert_allclose(found, scaled64(5e5, 128, 16.0, 1, 1, 8192), rtol=1e-6)
    assert set(np.round(plain / found).tolist()) == {1, 16}


def test_bands_in_the_wrong_order_are_refused():
    with pytest.raises(ValueError, match="0 < low <= high"):
        Llama3Rope(low=4.0, high=1.0)
