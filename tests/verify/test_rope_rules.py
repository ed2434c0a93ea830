"""Rules that stretch rope, in float64, beside the layers': right within the bound, wrong not."""

from dataclasses import replace

import pytest

from llama_jax.families.huggingface_rope import scaling
from llama_jax.layers.rope_scaled import DynamicRope, LinearRope, LongRope, YarnRope
from llama_jax.verify.declared import Said
from llama_jax.verify.rope import rope

N = 32
CONTEXT = 4096
KINDS = {
    "linear": LinearRope(5e5, factor=4.0),
    "dynamic": DynamicRope(5e5, factor=2.0, original=CONTEXT),
    "yarn": YarnRope(5e5, factor=16.0, original=4096),
    "yarn, all fields": YarnRope(5e5, (1,), 40.0, 4096, 16.0, 2.0, 1.3, truncate=False),
    "longrope": LongRope(
        5e5, short=(1.0,) * N, long=tuple(1.0 + i for i in range(N)), original=4096, attention=1.19
    ),
}


def statuses(model, said_of):
    told = scaling(said_of)
    assert told is not None
    said = Said(5e5, None, None, 1e-5, "a test", told | {"context": CONTEXT})
    return [line.status for line in rope(model, 2 * N, said).lines[1:]]


@pytest.mark.parametrize("kind", KINDS)
def test_right_angles_are_within_the_bound(kind):
    assert statuses(KINDS[kind], KINDS[kind]) == ["ok"] * 4


@pytest.mark.parametrize("kind", KINDS)
def test_wrong_numbers_are_beyond_it(kind):
    right = KINDS[kind]
    name = "attention" if kind == "longrope" else "factor"
    wrong = replace(right, **{name: getattr(right, name) * 1.001})
    assert statuses(wrong, right)[-1] == "failed"


def test_a_gain_that_is_not_told_is_the_paper_s():
    told = {"rope_type": "yarn", "factor": 16.0, "original_max_position_embeddings": 4096}
    said = Said(5e5, None, None, 1e-5, "a test", told | {"context": CONTEXT})
    found = rope(KINDS["yarn"], 2 * N, said)
    assert [line.status for line in found.lines[1:]] == ["ok"] * 4
