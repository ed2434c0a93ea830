"""The gradients on a TPU by one kernel, beside those by two, which are its slow twin."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.pallas import tpu as pltpu

from llama_jax.kernels.attention import (
    mosaic_tpu,
    mosaic_tpu_backward,
    mosaic_tpu_call,
    mosaic_tpu_steps,
)
from llama_jax.kernels.attention.block_mask import HIDDEN, PARTLY, operands
from llama_jax.kernels.attention.flash import Static, delta
from llama_jax.kernels.attention.mask import Mask
from llama_jax.kernels.attention.mosaic_tpu_backward import OnePass, TwoKernels
from llama_jax.kernels.attention.mosaic_tpu_steps import FLUSH
from llama_jax.kernels.target import interpreted
from tests.kernels.attention.test_mosaic_tpu import BLOCK, MASKS, SMALL, arrays, dense

pytestmark = pytest.mark.kernels

# Of the largest magnitude: the same products in other blocks, summed in another order; to bfloat16
# the sums are rounded once, 4e-3.
BETWEEN_FORMS = {jnp.float32: 1e-6, jnp.bfloat16: 8e-3}


def agree(mask, segments=(1, 2), softcap=None, scale=0.3, dtype=jnp.float32, **shape):
    """Each form's gradients with those of two kernels; the lse is that of float64."""
    q, k, v, grad = arrays(dtype=dtype, **shape)
    out, lse = dense(q, k, v, grad, mask, scale, softcap)[:2]
    sums = jnp.asarray(lse, jnp.float32), delta(jnp.asarray(out, jnp.float32), grad)
    data = operands(mask, q.shape[0], q.shape[1], k.shape[1])
    static = Static(mask.structure, scale, softcap)

    @jax.jit
    def every(*given):
        forms = (TwoKernels(), *(OnePass(n) for n in segments))
        return [
            mosaic_tpu.kernel(SMALL, form).backward(*given[:3], data, static, *sums, given[3])
            for form in forms
        ]

    with interpreted():
        slow, *fast = every(q, k, v, grad)
    for found in fast:
        for name, x, wanted in zip(("dq", "dk", "dv"), found, slow, strict=True):
            assert x.dtype == wanted.dtype and x.shape == wanted.shape
            wanted = np.asarray(wanted, np.float64)
            largest = max(np.abs(wanted).max(), 1e-30)
            error = np.abs(np.asarray(x, np.float64) - wanted).max() / largest
            assert error <= BETWEEN_FORMS[dtype], f"{name} differs by {error:.1e}"


@pytest.mark.parametrize("name", MASKS)
def test_one_pass_agrees_with_two_kernels_under_every_mask(name):
    agree(MASKS[name])


@pytest.mark.parametrize(("N", "K"), [(2, 2), (3, 1), (16, 1)])
def test_heads_that_share_a_key_head_are_summed_in_one_pass(N, K):
    agree(Mask(causal=True), N=N, K=K, T=32, S=16)


def test_more_segments_than_two_pass_the_sums_on():
    agree(Mask(causal=True), segments=(3, 4), T=61, S=61, N=2, K=1)


def test_capped_scores_and_rounded_numbers_agree():
    agree(MASKS["segments"], softcap=0.8, scale=0.5)
    agree(MASKS["causal"], dtype=jnp.bfloat16)


@pytest.mark.parametrize(("T", "S", "H"), [(5, 33, 16), (33, 5, 16), (20, 20, 20), (16, 24, 80)])
def test_lengths_and_head_dims_need_not_be_whole_blocks(T, S, H):
    agree(Mask(causal=True), T=T, S=S, H=H)


def test_a_batch_whose_steps_are_too_many_goes_row_by_row_in_one_pass(monkeypatch):
    monkeypatch.setattr(mosaic_tpu, "STEPS_BYTES", 4)
    agree(MASKS["lengths"], segments=(2,))


@pytest.mark.parametrize("heads", [2, 16])
def test_sums_are_right_where_memory_begins_as_nan_and_blocks_are_written_when_they_change(
    heads, monkeypatch, capfd
):
    # jax's simulator of a TPU: buffers and copies as on the chip; it prints a race that it finds.
    simulated = pltpu.InterpretParams(uninitialized_memory="nan", detect_races=True)
    monkeypatch.setattr(mosaic_tpu_call, "interpreting", lambda: simulated)
    agree(MASKS["lengths"], segments=(2,), N=heads, K=1)
    assert "RACE" not in capfd.readouterr().out


def steps_of(mask, queries, B=1, T=48):
    data = operands(mask, B, T, T)
    steps = mosaic_tpu_steps.both_ways(mask.structure, data, T, T, BLOCK, BLOCK, queries)
    rows = np.reshape(steps.packed, (-1, steps.length))
    found = [[tuple(map(int, mosaic_tpu_steps.unpack(x)[:3])) for x in row] for row in rows]
    return steps, found


def test_blocks_of_queries_are_flushed_after_all_keys():
    steps, (found,) = steps_of(Mask(causal=True), slice(2, 3))
    # owner, other of the segment, code
    assert found == [(0, 0, 2), (1, 0, 2), (2, 0, PARTLY), (2, 0, FLUSH)]
    assert (steps.stride, steps.tiles) == (0, 3)
    _, (found,) = steps_of(Mask(causal=True), slice(0, 1))
    assert found == [(0, 0, PARTLY), (1, 0, HIDDEN), (2, 0, HIDDEN), (2, 0, FLUSH)]


def test_a_row_with_fewer_steps_flushes_its_last_block_again():
    mask = Mask(causal=True, kv_valid=jnp.arange(48) < jnp.asarray([[48], [10]]))
    steps, (one, other) = steps_of(mask, slice(0, 2), B=2)
    assert int(steps.count) == 6 and steps.length == 6
    assert [step[1:] for step in one[-2:]] == [(0, FLUSH), (1, FLUSH)]
    assert other[:2] == [(0, 0, PARTLY), (0, 1, PARTLY)]
    assert other[-2:] == [(2, 0, FLUSH), (2, 1, FLUSH)]


def form_of(monkeypatch, kind, T=8192, N=8, K=2, H=128, S=None, dtype=jnp.bfloat16, steps=0):
    monkeypatch.setattr(mosaic_tpu_backward, "chip", lambda: kind)
    q, k = (jax.ShapeDtypeStruct((1, n, L, H), dtype) for n, L in ((N, T), (K, S or T)))
    return mosaic_tpu_backward.form(q, k, mosaic_tpu.blocks(H, dtype), steps)


def test_the_form_follows_from_the_shape_and_the_memory_of_the_chip(monkeypatch):
    for kind in ("TPU v5 lite", "TPU v6 lite"):
        assert form_of(monkeypatch, kind) == OnePass(1)
        assert form_of(monkeypatch, kind, T=32768) == OnePass(2)
        assert form_of(monkeypatch, kind, T=1 << 18) == TwoKernels()
        # dk and dv in float32 would be as large as dq in float32, and dq is there as well.
        assert form_of(monkeypatch, kind, T=1 << 16, N=4) == TwoKernels()
        assert form_of(monkeypatch, kind, T=1 << 16, N=4, dtype=jnp.float32) == OnePass(2)
    assert form_of(monkeypatch, "TPU v5") == OnePass(1)
    assert form_of(monkeypatch, "TPU v5", T=16384) == OnePass(2)
    assert form_of(monkeypatch, "TPU v4") == TwoKernels()
    assert form_of(monkeypatch, "TPU v5", steps=1 << 20) == TwoKernels()
