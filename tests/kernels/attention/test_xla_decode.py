"""Decoding in XLA agrees with the definition, and takes its place where jax has no Triton."""

import sys

import jax
import jax.numpy as jnp
import pytest

from llama_jax.kernels.attention import trials, xla_decode
from llama_jax.kernels.attention.api import BACKENDS, STEPS, Case
from llama_jax.kernels.attention.mask import Mask
from llama_jax.kernels.backends import choose, lines, recording, strictly
from tests.kernels.attention.suite import CASES, check

pytestmark = pytest.mark.kernels


@pytest.mark.parametrize("case", CASES, ids=str)
def test_a_cache_in_runs_gives_what_the_definition_says(case, monkeypatch):
    monkeypatch.setattr(xla_decode, "LEAST", 8)  # 40 keys are five runs
    check("xla_decode", case)


def test_runs_divide_the_keys_and_fill_a_gpu():
    assert xla_decode.runs(1, 8, 32768) == 32  # 256 products for 132 multiprocessors
    assert xla_decode.runs(8, 8, 8192) == 4
    assert xla_decode.runs(64, 8, 8192) == 1  # rows and heads are enough
    assert xla_decode.runs(1, 8, 9000) == 30
    assert xla_decode.runs(1, 8, 8191) == 1  # a prime


@pytest.fixture
def no_triton(monkeypatch):
    """A jax that has dropped it."""
    monkeypatch.setitem(sys.modules, "jax.experimental.pallas.triton", None)


def case(T, S=8192, dtype=jnp.float32):
    q, k = (jax.ShapeDtypeStruct((1, n, heads, 64), dtype) for n, heads in ((T, 4), (S, 2)))
    return Case("gpu", q, k, Mask(causal=True), False, None, "NVIDIA A100")


def test_with_triton_a_gpu_decodes_by_its_kernel():
    assert choose("attention", BACKENDS, case(1)) == "pallas_gpu_decode"
    assert choose("attention", BACKENDS, case(8192)) == "pallas_gpu"


def test_without_triton_a_gpu_decodes_in_xla_which_is_no_fallback(no_triton, caplog):
    with recording() as found, strictly():
        assert choose("attention", BACKENDS, case(1)) == "xla_decode"
    [line] = lines(found)
    assert ": xla_decode (" in line
    assert f"; pallas_gpu_decode: jax {jax.__version__} has no Triton backend of Pallas)" in line
    assert not caplog.records


def test_without_triton_float32_is_chunked_which_is_said(no_triton):
    # A kernel for Hopper is there, and refuses: a fallback as ever.
    with recording() as found:
        assert choose("attention", BACKENDS, case(8192)) == "xla_chunked"
        assert choose("ring step", STEPS, case(8192)) == "xla_chunked"
    for line in lines(found):
        assert ": xla_chunked, a fallback (" in line
        assert f"; pallas_gpu: jax {jax.__version__} has no Triton backend of Pallas" in line


def test_without_triton_its_kernels_are_refused_by_name_and_not_tried(no_triton):
    with pytest.raises(ValueError, match="'pallas_gpu_decode': jax .* has no Triton backend"):
        choose("attention", BACKENDS, case(1), "pallas_gpu_decode")
    assert trials.trials("pallas_gpu") == trials.trials("pallas_gpu_decode") == ()
