"""Attention and its gradients in NumPy: what a device's kernels are measured against.

It needs no compiler and no device, so a proof compiles the kernel alone, and a device on which XLA
is wrong is not compared with itself. The equations are those of `flash`.
"""

from typing import Any, NamedTuple

import numpy as np

from llama_jax.kernels.attention.mask import Mask


class Results(NamedTuple):
    """Both passes, float32.

    Attributes:
      out: [B, T, N, H].
      lse: [B, N, T]; -inf where a query sees no key, where `out` is zero.
      dq: [B, T, N, H].
      dk: [B, S, K, H].
      dv: [B, S, K, H].
    """

    out: np.ndarray
    lse: np.ndarray
    dq: np.ndarray
    dk: np.ndarray
    dv: np.ndarray


def both_passes(
    q: Any, k: Any, v: Any, grad: Any, mask: Mask, scale: float, softcap: float | None
) -> Results:
    """The result of q over k and v and the gradients, for the gradient of the result.

    Args:
      q: [B, T, N, H].
      k: [B, S, K, H].
      v: [B, S, K, H].
      grad: [B, T, N, H].
      mask: who sees whom, in arrays of NumPy.
      scale: multiplies q k'.
      softcap: bound of the scores, if there is one.
    """
    q, k, v, grad = (np.asarray(x).astype(np.float32) for x in (q, k, v, grad))
    (B, T, N, _), (S, K) = q.shape, k.shape[1:3]
    shown = np.broadcast_to(seen(mask, T, S), (B, T, S))
    found = Results(
        np.zeros_like(q),
        np.zeros((B, N, T), np.float32),
        *(np.zeros_like(x) for x in (q, k, v)),
    )
    for b in range(B):  # head by head, as each fits into a cache's reach
        for n in range(N):
            of = n // (N // K)
            out, lse, dq, dk, dv = _head(
                q[b, :, n], k[b, :, of], v[b, :, of], grad[b, :, n], shown[b], scale, softcap
            )
            found.out[b, :, n], found.lse[b, n], found.dq[b, :, n] = out, lse, dq
            found.dk[b, :, of] += dk
            found.dv[b, :, of] += dv
    return found


def _head(q, k, v, grad, shown, scale, softcap):
    s = q @ k.T * np.float32(scale)
    slope = np.float32(1)
    if softcap is not None:
        share = np.tanh(s / np.float32(softcap))
        s, slope = np.float32(softcap) * share, 1 - share * share
    s = np.where(shown, s, -np.inf)
    top = s.max(axis=1, keepdims=True)
    p = np.exp(s - np.where(np.isfinite(top), top, 0))
    total = p.sum(axis=1, keepdims=True)
    some = total > 0
    p /= np.where(some, total, 1)
    out = p @ v
    lse = np.where(some, top + np.log(np.where(some, total, 1)), -np.inf)[:, 0]
    ds = p * (grad @ v.T - (out * grad).sum(axis=1, keepdims=True)) * slope * np.float32(scale)
    return out, lse, ds @ k, ds.T @ q, p.T @ grad


def seen(mask: Mask, T: int, S: int) -> np.ndarray:
    """`Mask.dense` of a mask of NumPy's arrays, [B, T, S]; B is 1 where no row differs."""

    def counted(given: Any, length: int) -> Any:
        return np.arange(length)[None] if given is None else given

    q, kv = counted(mask.q_positions, T), counted(mask.kv_positions, S)
    prefix = None if mask.prefix is None else np.reshape(mask.prefix, (-1, 1, 1))
    shown: Any = np.ones((1, T, S), bool)
    for part in (
        mask.near(q[:, :, None], kv[:, None, :], prefix),
        None if mask.kv_valid is None else mask.kv_valid[:, None, :],
        mask.allow,
    ):
        shown = shown if part is None else shown & part
    if mask.q_segments is not None and mask.kv_segments is not None:
        shown = shown & (mask.q_segments[:, :, None] == mask.kv_segments[:, None, :])
    return shown
