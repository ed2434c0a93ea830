"""What kernels are measured against on a device is the definition."""

import numpy as np
import pytest

from llama_jax.kernels.attention import on_host
from tests.kernels.attention.suite import MASKS, TOLERANCE, truth


@pytest.mark.parametrize("softcap", [None, 2.0])
@pytest.mark.parametrize("name", MASKS)
def test_both_passes_in_numpy_are_the_definition(name, softcap):
    rng = np.random.default_rng(0)
    q, k, v, grad = (
        rng.normal(size=(2, n, heads, 16)).astype(np.float32)
        for n, heads in ((24, 4), (40, 2), (40, 2), (24, 4))
    )
    mask = MASKS[name](rng, 2, 24, 40)
    seen = np.broadcast_to(mask.dense(24, 40), (2, 24, 40))
    np.testing.assert_array_equal(np.broadcast_to(on_host.seen(mask, 24, 40), seen.shape), seen)
    found = on_host.both_passes(q, k, v, grad, mask, 0.25, softcap)
    wanted = truth(q, k, v, seen, grad, softcap, 0.25)
    for x, y in zip((found.out, found.dq, found.dk, found.dv), wanted, strict=True):
        assert x.dtype == np.float32
        assert np.abs(x - y).max() <= TOLERANCE["float32"] * np.abs(y).max()
    scores = np.einsum("BTKGH,BSKH->BKGTS", q.reshape(2, 24, 2, 2, 16), k).reshape(2, 4, 24, 40) / 4
    if softcap:
        scores = softcap * np.tanh(scores / softcap)
    with np.errstate(divide="ignore"):
        lse = np.log(np.where(seen[:, None], np.exp(scores.astype(np.float64)), 0).sum(-1))
    np.testing.assert_array_equal(np.isfinite(found.lse), np.isfinite(lse))
    there = np.isfinite(lse)
    assert np.abs(found.lse[there] - lse[there]).max() <= 1e-6 * np.abs(lse[there]).max()
