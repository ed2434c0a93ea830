"""Attention as a number of operations: what stands in for it where a program is only counted.

Whichever backend runs, a program's FLOPs should not depend on it. Within `counting()` a call of
attention is traced as one jitted function whose name carries its cost, forward and backward:

    with counting():
        jaxpr = jax.make_jaxpr(step)(state, batch)     # train/flops.py walks it

A pair (query, key) costs 4 H operations forward (q k' and p v) and 10 H backward, where a flash
kernel computes the scores again (five products; Dao et al. 2022, arXiv:2205.14135).
"""

import contextlib
import contextvars
from collections.abc import Iterator
from functools import partial
from typing import Any, Literal

import jax
import jax.numpy as jnp

from llama_jax.kernels.attention.mask import Mask

NAME = "counted"
FORWARD, BACKWARD = 4, 10

What = Literal["model", "work"]
_what: contextvars.ContextVar[What | None] = contextvars.ContextVar("counting", default=None)


@contextlib.contextmanager
def counting(what: What = "work") -> Iterator[None]:
    """Within the block programs are traced to be counted; none may be run.

    Args:
      what: "work" is what the backends would do; "model" what the model is defined by, so that
        the loss is that of whole logits, without the padding of chunks.
    """
    token = _what.set(what)
    try:
        yield
    finally:
        _what.reset(token)


def on(*whats: What) -> bool:
    """Whether a program is being counted, for one of these purposes (default: any)."""
    return _what.get() in (whats or ("model", "work"))


def pairs(mask: Mask, T: int, S: int) -> int | float:
    """How many of T x S pairs the structure of a mask shows; what its arrays hide is not known.

    Causal attention over its own sequence is counted half, T^2 / 2, as is the custom.
    """
    if not mask.local:
        return T * S
    if mask.prefix is not None or T != S:
        return T * S
    if mask.chunk is not None and mask.chunk < T:
        whole, rest = divmod(T, mask.chunk)
        inner = Mask(causal=mask.causal, window=mask.window)
        return whole * pairs(inner, mask.chunk, mask.chunk) + pairs(inner, rest, rest)
    # A window of T looks at all.
    w = T if mask.window is None else min(mask.window, T)
    if mask.causal:
        return T * w - w * w / 2
    return T * (2 * w - 1) - w * (w - 1)


def cost(name: str, q: Any) -> float:
    """The operations of a stand-in of this name over queries of a shape."""
    _, flops, T = name.split("_")
    return float(flops) * q.size / int(T)


def attention(q: jax.Array, k: jax.Array, v: jax.Array, mask: Mask) -> tuple[jax.Array, jax.Array]:
    """The stand-in for attention: shapes, types and dependencies of its result and its lse."""
    out: jax.Array = _stand_in(float(pairs(mask, q.shape[1], k.shape[1])), q, k, v)
    return out, out[..., 0].swapaxes(1, 2).astype(jnp.float32)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _stand_in(seen: float, q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
    return _named(FORWARD * seen, q, k, v)


def _forward(seen: float, q: jax.Array, k: jax.Array, v: jax.Array):
    out = _named(FORWARD * seen, q, k, v)
    return out, (q, k, v, out)


def _backward(seen: float, kept: tuple[jax.Array, ...], grad: jax.Array):
    q, k, v, out = kept
    mixed = _named(BACKWARD * seen, q, k, v, out, grad)
    dk = jnp.broadcast_to(jnp.sum(mixed), k.shape).astype(k.dtype)
    return mixed, dk, dk.astype(v.dtype)


_stand_in.defvjp(_forward, _backward)


def _named(flops: float, q: jax.Array, *others: jax.Array) -> jax.Array:
    """Something of q's shape that depends on all, whose cost stands in its name.

    The cost is a query's, not the call's, so that it stays right under `vmap`.
    """

    def mixed(q, *others):
        return q + sum(jnp.sum(x).astype(q.dtype) for x in others)

    mixed.__name__ = f"{NAME}_{flops:.0f}_{q.shape[1]}"
    return jax.jit(mixed)(q, *others)
