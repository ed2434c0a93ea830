"""Kernels that are not right, in the place of one that is; and what a child runs in their tests.

python -m tests.kernels.attention.stand_ins hangs
"""

import json
import os
import sys
import time
from collections.abc import Callable
from typing import Any

import pytest


def put(patch: pytest.MonkeyPatch, change: Callable[..., Any], small: int = 1) -> None:
    """Every kernel is `change` of one of XLA, tried on one small case.

    Args:
      patch: what undoes it.
      change: makes a kernel of a right one.
      small: how many cases.
    """
    from llama_jax.kernels.attention import api, trials
    from llama_jax.kernels.attention.mask import Mask
    from llama_jax.kernels.attention.xla_chunked import CHUNKED

    def causal(B, T, S):
        return Mask(causal=True)

    cases = tuple(
        trials.Trial(
            f"small {i}", causal, B=1, T=8, S=12, N=2, K=1, H=8, types=tuple(trials.BOUNDS)
        )
        for i in range(small)
    )
    patch.setattr(trials, "TRIALS", cases)
    patch.setattr(api, "kernel", lambda name: change(CHUNKED))


def right(kernel):
    return kernel


def hasty(kernel):
    """A slot of a ring is read before its block of 64 keys is there."""

    def stale(x):
        start = 2 * x.shape[1] // 3
        return x.at[:, start : start + 64].set(x[:, start - 64 : start])

    def forward(q, k, v, *given):
        return kernel.forward(q, stale(k), stale(v), *given)

    return kernel._replace(forward=forward)


def doubled_dk(kernel):
    def backward(*given):
        dq, dk, dv = kernel.backward(*given)
        return dq, 2 * dk, dv

    return kernel._replace(backward=backward)


def like_tf32(kernel):
    """Of float32 the last 13 bits are dropped before it is multiplied."""
    import jax.numpy as jnp

    def forward(q, *given):
        bits = q.astype(jnp.float32).view(jnp.int32)
        rounded = ((bits + 0x1000) & ~0x1FFF).view(jnp.float32)
        return kernel.forward(rounded.astype(q.dtype), *given)

    return kernel._replace(forward=forward)


def uncompilable(kernel):
    def forward(*given):
        raise NotImplementedError("no lowering of\nthis")

    return kernel._replace(forward=forward)


def endless(kernel):
    def forward(*given):
        time.sleep(2.5)  # of a thread, which must end before Python does
        return kernel.forward(*given)

    return kernel._replace(forward=forward)


def moving(kernel):
    """The result has other last bits from run to run, as in a race."""
    import jax
    import numpy as np

    runs = iter(range(1_000_000))

    def forward(*given):
        out, lse = kernel.forward(*given)
        moved = jax.pure_callback(
            lambda x: x + np.float32(1e-4 * next(runs)), jax.ShapeDtypeStruct((), "float32"), 0.0
        )
        return out, lse + 1e-3 * moved

    return kernel._replace(forward=forward)


def not_a_number(kernel):
    def backward(*given):
        dq, dk, dv = kernel.backward(*given)
        return dq, dk, dv.at[0, 3].set(float("nan"))

    return kernel._replace(backward=backward)


def _child(how: str) -> None:
    if how == "right":
        from llama_jax.kernels.attention import proof

        put(pytest.MonkeyPatch(), right, small=2)
        print("what libraries say")
        return proof.main("pallas_gpu")
    if how == "elsewhere":  # a device that is not the parent's
        return print(json.dumps({"device": "NVIDIA H200"}))
    print(json.dumps({"device": "cpu"}), flush=True)
    first = {"case": "small 0", "error": 0.0, "bound": 1.0, "seconds": 0.0, "reason": None}
    print(json.dumps({"kernel": "pallas_gpu", **first}), "\n", '{"kernel": "pal', flush=True)
    if how == "hangs":
        time.sleep(60)
    os._exit(139)


if __name__ == "__main__":
    _child(os.environ.get("STAND_IN", sys.argv[-1]))
