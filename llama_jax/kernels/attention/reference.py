"""Attention in plain XLA, all scores at once: the reference, which takes every case."""

import functools
import itertools
import operator
from collections.abc import Iterable

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Float

from llama_jax.kernels.attention.flash import Summed
from llama_jax.kernels.attention.mask import Mask


def dense(
    q: Float[Array, "B T N H"],
    k: Float[Array, "B S K H"],
    v: Float[Array, "B S K H"],
    mask: Mask,
    *,
    bias: Float[Array, "N T S"] | None,
    scale: float,
    softcap: float | None,
) -> Summed:
    """softmax(scale q k' + bias) v over the keys that the mask shows, and its lse; float32 inside.

    A query that sees no key gives zeros and -inf. Grouped heads share keys without a copy
    (N = K x G). Source: Vaswani et al. 2017, equation 1; softcap as in Gemma 2 (arXiv:2408.00118).
    """
    B, T, N, H = q.shape
    S, K = k.shape[1:3]
    q = q.reshape(B, T, K, N // K, H)
    scores = jnp.einsum("BTKGH,BSKH->BKGTS", q, k, preferred_element_type=jnp.float32) * scale
    if softcap is not None:
        scores = softcap * jnp.tanh(scores / softcap)
    if bias is not None:
        scores = scores + bias.reshape(K, N // K, T, S)
    if mask.empty:
        probs, lse = jax.nn.softmax(scores, axis=-1), jax.nn.logsumexp(scores, axis=-1)
    else:
        seen = mask.dense(T, S)[:, None, None]
        probs, lse = _softmax(jnp.where(seen, scores, -jnp.inf), mask.parts)
    runs = zip(_runs(probs.astype(v.dtype), -1, mask.parts), _runs(v, 1, mask.parts), strict=True)
    # Turned afterwards: asked for in the order BTKGH, XLA on a CPU copies all values first.
    out_BKGTH = _sum(
        jnp.einsum("BKGTS,BSKH->BKGTH", p, part, preferred_element_type=jnp.float32)
        for p, part in runs
    )
    out_BTNH = jnp.moveaxis(out_BKGTH, 3, 1).reshape(B, T, N, H).astype(q.dtype)
    return checkpoint_name(out_BTNH, "attention"), lse.reshape(B, N, T)


@functools.partial(jax.custom_jvp, nondiff_argnums=(1,))
def _softmax(scores: jax.Array, parts: tuple[int, ...]) -> tuple[jax.Array, jax.Array]:
    """Softmax and lse over the last axis; a row of -inf alone gives zeros. Sums run by run."""
    top = jnp.max(scores, axis=-1, keepdims=True)
    # A row that sees nothing has top = -inf; -inf - -inf would be NaN.
    probs = jnp.exp(scores - jnp.where(top > -jnp.inf, top, 0.0))
    total = _sum(jnp.sum(run, axis=-1, keepdims=True) for run in _runs(probs, -1, parts))
    return probs / jnp.where(total == 0.0, 1.0, total), (top + jnp.log(total))[..., 0]


@_softmax.defjvp
def _softmax_jvp(parts, primals, tangents):
    # From the result alone: the scores need not be kept, and half the passes over memory go.
    (probs, lse), (change,) = _softmax(*primals, parts), tangents
    moved = probs * change
    total = _sum(jnp.sum(run, axis=-1, keepdims=True) for run in _runs(moved, -1, parts))
    return (probs, lse), (moved - probs * total, total[..., 0])


def _runs(x: jax.Array, axis: int, parts: tuple[int, ...]) -> list[jax.Array]:
    """Cuts the key axis into the runs that are summed apart."""
    if len(parts) < 2:
        return [x]
    return jnp.split(x, list(itertools.accumulate(parts))[:-1], axis=axis)


def _sum(parts: Iterable[jax.Array]) -> jax.Array:
    return functools.reduce(operator.add, parts)
