"""Every field of rope in a config.json with every odd value: a rope, or one line that names it."""

import math

import numpy as np
import pytest

from llama_jax.errors import FormatError
from llama_jax.families.huggingface_rope import rope

ODD = [None, 0, -1, 1, 1.5, 8.0, 1e300, math.nan, math.inf, 2**70, True, "x", [], [1], [1, "x"]]
ODD += [[0.0], {}, {"a": 1}]
ORIGINAL = "original_max_position_embeddings"
FIELDS = ("rope_theta", "rope_type", "type", "factor", "attention_factor", "truncate", ORIGINAL)
FIELDS += ("beta_fast", "beta_slow", "mscale", "mscale_all_dim", "short_factor", "long_factor")
FIELDS += ("low_freq_factor", "high_freq_factor", "partial_rotary_factor", "finetuned")
PAIRS = 4
FACTORS = {"short_factor": [1.0] * PAIRS, "long_factor": [2.0] * PAIRS}
KINDS = {
    "default": {}, "linear": {}, "dynamic": {}, "yarn": {}, "longrope": FACTORS, "su": FACTORS,
    "llama3": {"low_freq_factor": 1.0, "high_freq_factor": 4.0},
}  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("outside", [False, True], ids=["in the object", "beside it"])
def test_an_odd_value_gives_a_rope_or_one_line(kind, outside):
    read = 0
    for field in FIELDS if not outside else ("rope_theta", ORIGINAL, "max_position_embeddings"):
        for value in ODD:
            scaling = {"rope_type": kind, ORIGINAL: 64, **KINDS[kind]}
            scaling |= {} if kind == "default" else {"factor": 2.0}
            config = {"rope_scaling": scaling, "max_position_embeddings": 128}
            (config if outside else scaling)[field] = value
            try:
                found = rope(config, "x/config.json")
            except FormatError as error:
                assert str(error).startswith("x/config.json: ") and "\n" not in str(error)
            else:
                assert np.isfinite(found.gain) and found.pairs(2 * PAIRS) == (PAIRS,)
                with np.errstate(all="ignore"):
                    assert found.frequencies(2 * PAIRS).dtype == np.float32
                read += 1
    assert read > 5


def test_a_switch_of_another_kind_is_refused_when_it_is_on():
    for value, fits in ((False, True), (None, True), (True, False)):
        config = {
            "rope_scaling": {"rope_type": "linear", "factor": 2.0, "mrope_interleaved": value}
        }
        if fits:
            assert rope(config).factor == 2.0
        else:
            with pytest.raises(FormatError, match=r"rope_scaling\.mrope_interleaved=True"):
                rope(config)
