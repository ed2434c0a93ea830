"""Attention of a few queries over a long cache on a TPU: every key is read once and never moved.

A cache is [B, S, K, H]. Reading one head of it would be slow, for heads lie closest together, and
turning it around would copy it for each token. So all heads stay together: keys become rows
[S * K, H], queries rows [N * T, H], one product gives the scores of all queries with the keys of
all heads, and those of another head are hidden as a mask hides keys:

                 key 0         key 1
               head 0  1     head 0  1
    head 0         x  .          x  .         x: counts
    head 1         .  x          .  x         .: computed and hidden

That is K times the products, and still less time than reading the keys takes: each key of H
bfloat16 numbers is met by N * T queries, 2 * N * T operations a byte, where a v5e does 240 in the
time of a byte. The kernel is the forward one of `tpu`: blocks of keys beyond a row's length, or
outside of its window, are not in its list of steps and so not read.
"""

from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float

from llama_jax.kernels import tpu
from llama_jax.kernels.blocks import Operands
from llama_jax.kernels.flash import Kernel, Static
from llama_jax.kernels.tpu_steps import by_queries

MOST_ROWS = 256  # N * T; with more, computing takes longer than reading
MOST_KEYS = 1 << 22  # 4 Mi numbers a list of steps could name with blocks of 512
BLOCK_BYTES = 1 << 20  # of keys: 1.3 microseconds on a v5e, four times what a step costs
BLOCK_ROWS = 4096  # S * K in a block: 256 x 4096 scores in float32 are 4 MiB


def why_not(case: Any) -> str | None:
    """Why the kernel cannot take an `attention.Case`, None if it can."""
    T, N, H = case.q.shape[1:]
    if N * T > MOST_ROWS:
        return f"{T} queries x {N} heads are {N * T} rows, more than {MOST_ROWS}"
    if case.mask.allow is not None:
        return "a mask with allow_BTS differs for each query"
    K = case.k.shape[2]
    if H % tpu.LANES or (K % 8 and K not in (1, 2, 4)):
        # Registers are 8 x 128 numbers: heads that leave part of one empty lie apart in memory.
        return (
            f"{K} key heads of {H} do not fill registers of 8 x {tpu.LANES}: "
            "the cache would be copied for each token"
        )
    if case.k.shape[1] > MOST_KEYS:
        return f"{case.k.shape[1]} keys are more than {MOST_KEYS}"
    return tpu.why_not(case)


def keys_in_block(S: int, K: int, H: int, itemsize: int) -> int:
    """How many keys of all heads a step reads."""
    rows = min(BLOCK_BYTES // (itemsize * max(H, tpu.LANES)), BLOCK_ROWS)
    return tpu.fit(S, max(tpu.LANES, rows // K // tpu.LANES * tpu.LANES))


def forward(
    q: Float[Array, "B T N H"],
    k: Float[Array, "B S K H"],
    v: Float[Array, "B S K H"],
    data: Operands,
    static: Static,
    block: int | None = None,
) -> tuple[Float[Array, "B T N H"], Float[Array, "B N T"]]:
    """The result and its lse; `block` keys a step."""
    (B, T, N, H), (S, K) = q.shape, k.shape[1:3]
    size = keys_in_block(S, K, H, k.dtype.itemsize) if block is None else block
    steps = by_queries(static.structure, data, T, S, T, size)
    # Sublanes of a 16-bit tile.
    rows = -(-N * T // 16) * 16
    q_BNTH = jnp.swapaxes(q, 1, 2)
    folded = q_BNTH.reshape(B, 1, N * T, H)
    k, v = (x.reshape(B, 1, S * K, H) for x in (k, v))
    q_positions, kv_positions = data.q_positions, data.kv_positions
    if static.structure.local and q_positions is None:
        q_positions = jnp.broadcast_to(jnp.arange(T, dtype=jnp.int32), (B, T))
        kv_positions = jnp.broadcast_to(jnp.arange(S, dtype=jnp.int32), (B, S))
    data = data._replace(
        q_positions=None if q_positions is None else jnp.tile(q_positions, (1, N)),
        kv_positions=kv_positions,
        q_segments=None if data.q_segments is None else jnp.tile(data.q_segments, (1, N)),
    )
    call = tpu.prepare(folded, k, data, static, (rows, size * K), steps, K)
    out, lse = tpu.forward_of(call, folded, k, v)
    return jnp.swapaxes(out.reshape(B, N, T, H), 1, 2), lse.reshape(B, N, T)


# Gradients are rare here, so those of the long form will do.
TPU_DECODE = Kernel(forward, tpu.TPU.backward)
