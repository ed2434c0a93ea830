"""Attention of a few queries over a long cache on a TPU: every key is read once and never moved.

A cache lies head by head, [B, K, S, H] (`layers.slots`), so a block of one head's keys is one
piece of memory. All G query heads of a key head, and all queries, are rows of one tile: a block of
keys goes through the matrix unit once for all of them.

Registers have 128 lanes, and XLA lays an array out so that they are filled. Heads of 128 or 256
fill them, as [S, H]. Heads of 64 would leave half of the memory empty, so XLA turns them, and the
kernel reads them as they lie, a key in each lane:

    a head's keys in memory: 64 rows of S lanes      scores [rows, S] = q [rows, 64] x keys [64, S]

The kernel is the forward one of `mosaic_tpu`: blocks of keys beyond a row's length, or outside of
its window, are not in its list of steps and so not read. Blocks are larger than there, for a step
with few queries takes as long as its keys take to arrive.
"""

from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float

from llama_jax.kernels.attention import mosaic_tpu
from llama_jax.kernels.attention.block_mask import Operands
from llama_jax.kernels.attention.flash import Kernel, Static
from llama_jax.kernels.attention.mosaic_tpu_steps import by_queries
from llama_jax.kernels.attention.mosaic_tpu_tile import LANES, Turned

MOST_ROWS = 256  # G * T; with more, computing takes longer than reading
MOST_KEYS = 1 << 22  # 4 Mi numbers a list of steps could name with blocks of 512
BLOCK_BYTES = 1 << 20  # of keys: 1.3 microseconds on a v5e, four times what a step costs
BLOCK_SCORES = 1 << 20  # in float32 4 MiB
SUBLANES = 8  # of a tile of memory


def why_not(case: Any) -> str | None:
    """Why the kernel cannot take an `attention.Case`, None if it can."""
    T, N, H = case.q.shape[1:]
    S, K = case.k.shape[1:3]
    rows = N // K * T
    if rows > MOST_ROWS:
        return f"{T} queries x {N // K} heads of a key head are {rows} rows, more than {MOST_ROWS}"
    if case.mask.allow is not None:
        return "a mask with allow_BTS differs for each query"
    if H % SUBLANES:
        return f"heads of {H} are no multiple of {SUBLANES}: a copy of the cache would be, padded"
    if S > MOST_KEYS:
        return f"{S} keys are more than {MOST_KEYS}"
    return mosaic_tpu.why_not(case)


def keys_in_block(rows: int, S: int, H: int, itemsize: int) -> int:
    """How many keys of a head a step of so many rows reads."""
    return mosaic_tpu.fit(S, min(BLOCK_BYTES // (itemsize * H), BLOCK_SCORES // rows))


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
    G = N // K
    # Sublanes of a 16-bit tile.
    rows = -(-G * T // 16) * 16
    size = keys_in_block(rows, S, H, k.dtype.itemsize) if block is None else block
    steps = by_queries(static.structure, data, T, S, T, size)
    q_BKRH = q.reshape(B, T, K, G, H).transpose(0, 2, 3, 1, 4).reshape(B, K, G * T, H)
    k_BKSH, v_BKSH = (jnp.swapaxes(x, 1, 2) for x in (k, v))
    q_positions, kv_positions = data.q_positions, data.kv_positions
    if static.structure.local and q_positions is None:
        q_positions = jnp.broadcast_to(jnp.arange(T, dtype=jnp.int32), (B, T))
        kv_positions = jnp.broadcast_to(jnp.arange(S, dtype=jnp.int32), (B, S))
    data = data._replace(
        q_positions=None if q_positions is None else jnp.tile(q_positions, (1, G)),
        kv_positions=kv_positions,
        q_segments=None if data.q_segments is None else jnp.tile(data.q_segments, (1, G)),
    )
    call = mosaic_tpu.prepare(q_BKRH, k_BKSH, data, static, (rows, size), steps)
    if H % LANES:
        call = call._replace(tile=Turned(*call.tile))
        k_BKSH, v_BKSH = (jnp.swapaxes(x, 2, 3) for x in (k_BKSH, v_BKSH))  # as they lie
    out, lse = mosaic_tpu.forward_of(call, q_BKRH, k_BKSH, v_BKSH)
    out = out.reshape(B, K, G, T, H).transpose(0, 3, 1, 2, 4).reshape(B, T, N, H)
    return out, lse.reshape(B, N, T)


# Gradients are rare here, so those of the long form will do.
TPU_DECODE = Kernel(forward, mosaic_tpu.TPU.backward)
