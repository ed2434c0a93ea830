"""The suite on every backend, kernels interpreted: a case is computed, or refused with a reason."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings

from llama_jax.kernels.attention.api import BACKENDS, KERNELS, attention, case_of
from llama_jax.kernels.target import interpreted
from tests.kernels.attention.suite import CASES, MASKS, TOLERANCE, Attend, check, truth
from tests.kernels.attention.test_block_mask import masks

pytestmark = pytest.mark.kernels

FLASH = ["pallas_tpu", "pallas_gpu"]
XLA = ["xla", "xla_chunked"]
# A step of decoding: two queries, a cache; head dims and key heads that a TPU's registers hold.
CACHE = [
    Attend(f"cache, {name}", MASKS[name], T=2, S=70, N=8, K=2, H=128)
    for name in ("all", "lengths", "places")
]
# Half precision only, on Hopper; in a simulator of its threads, so a few cases stand for all.
HALF = [case for case in CASES if case.dtype == "bfloat16"]


@pytest.mark.parametrize("backend", XLA + FLASH)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_a_backend_computes_the_definition_and_its_gradients(backend, case):
    check(backend, case)


@pytest.mark.parametrize("backend", ["pallas_tpu_decode", "pallas_gpu_decode"])
@pytest.mark.parametrize("case", CACHE, ids=str)
def test_a_kernel_for_decoding_computes_the_definition_and_its_gradients(backend, case):
    check(backend, case)


@pytest.mark.parametrize("case", HALF, ids=str)
def test_the_kernel_for_hopper_computes_the_definition_and_its_gradients(case):
    check("mosaic_gpu", case)


def agrees(backend, mask):
    rng = np.random.default_rng(0)
    shapes = (2, 10, 4, 8), (2, 13, 2, 8), (2, 13, 2, 8)
    q, k, v = (jnp.asarray(rng.normal(size=shape), jnp.float32) for shape in shapes)
    with interpreted():
        found = attention(q, k, v, mask, backend=backend)
    expected = truth(q, k, v, np.broadcast_to(mask.dense(10, 13), (2, 10, 13)), q)[0]
    scale = max(np.abs(expected).max(), 1e-3)  # all may be hidden
    np.testing.assert_allclose(found, expected, rtol=0, atol=TOLERANCE["float32"] * scale)


@pytest.mark.parametrize("backend", XLA)
@settings(max_examples=60, deadline=None)
@given(mask=masks())
def test_random_masks_agree_with_the_definition(backend, mask):
    agrees(backend, mask)


@pytest.mark.parametrize("backend", FLASH)
@settings(max_examples=8, deadline=None)  # half a minute for each of the two
@given(mask=masks())
def test_random_masks_agree_with_the_definition_in_kernels(backend, mask):
    agrees(backend, mask)


def refusals(backend):
    """Case -> reason, of those that a backend refuses on its own platform."""
    rng, found = np.random.default_rng(0), {}
    for case in [*CASES, *CACHE]:
        B, T, S = case.B, case.T, case.S
        q, k = (
            jax.ShapeDtypeStruct((B, length, n, case.H), case.dtype)
            for length, n in ((T, case.N), (S, case.K))
        )
        with interpreted():
            call = case_of(q, k, case.mask(rng, B, T, S), False, case.softcap)
            if reason := BACKENDS[backend].refusal(call):
                found[str(case)] = reason
    return found


def test_flash_kernels_refuse_nothing_of_the_suite_and_others_say_why():
    assert {name: refusals(name) for name in FLASH} == {name: {} for name in FLASH}
    float32 = {str(c) for c in [*CASES, *CACHE] if c.dtype == "float32"}
    half = refusals("mosaic_gpu")
    assert half.keys() == float32 and all("not float32" in reason for reason in half.values())
    for name in (name for name in KERNELS if name.endswith("decode")):
        reasons = refusals(name)
        assert not reasons.keys() & {str(case) for case in CACHE}
        assert all("rows" in r or "lanes" in r or "allow" in r for r in reasons.values())
