"""Decode attention in plain XLA: a few queries over a long cache, whose keys are split and merged.

For a GPU whose jax has no kernel for that. The products of one query with all keys of a head are a
matrix product of few rows and many terms, which one multiprocessor would sum alone. So the keys of
a head are cut into X runs, each a product of its own in one batch, and the X results are weighted
by their lse (flash-decoding, as in `triton_decode`).

A cache lies head by head, [B, K, S, H] (`layers.slots`); cut into [B, K, X, C, H] none of it moves.
Keys beyond a row's length are read, for the shapes of XLA's products are known while tracing.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from llama_jax.kernels.attention import flash, xla_chunked
from llama_jax.kernels.attention.block_mask import Operands, seen
from llama_jax.kernels.attention.flash import Kernel, Static

PRODUCTS = 2 * 132  # at once, at most: two for each multiprocessor of an H100
LEAST = 256  # keys of a run: 64 KB of heads of 128, some microseconds of reading


def runs(B: int, K: int, S: int) -> int:
    """X: into how many runs S keys are cut, a number that divides them."""
    most = max(1, min(S // LEAST, PRODUCTS // (B * K)))
    return next(x for x in range(most, 0, -1) if S % x == 0)


def forward(
    q: Float[Array, "B T N H"],
    k: Float[Array, "B S K H"],
    v: Float[Array, "B S K H"],
    data: Operands,
    static: Static,
) -> tuple[Float[Array, "B T N H"], Float[Array, "B N T"]]:
    """See `flash.Forward`; temporary memory is that of the scores, B x N x T x S."""
    (B, T, N, H), (S, K) = q.shape, k.shape[1:3]
    G, X = N // K, runs(B, K, S)
    # Row r is query r // G and head r % G of the key head.
    q_BKRH = jnp.swapaxes(q.reshape(B, T, K, G, H), 1, 2).reshape(B, K, T * G, H)
    q_BKXRH = jnp.broadcast_to(q_BKRH[:, :, None], (B, K, X, T * G, H))
    k_BKXCH, v_BKXCH = (jnp.swapaxes(x, 1, 2).reshape(B, K, X, S // X, H) for x in (k, v))
    scores = _product("BKXRH,BKXCH->BKXRC", q_BKXRH, k_BKXCH) * static.scale
    if static.softcap is not None:
        scores = static.softcap * jnp.tanh(scores / static.softcap)
    shown = _shown(data, static, T, S, G, X)
    if shown is not None:
        scores = jnp.where(shown, scores, -jnp.inf)
    top = jnp.max(scores, axis=-1, keepdims=True)
    # A run of which a row sees nothing has top = -inf; -inf - -inf would be NaN.
    probs = jnp.exp(scores - jnp.where(top > -jnp.inf, top, 0.0))
    total = jnp.sum(probs, axis=-1, keepdims=True)
    out = _product("BKXRC,BKXCH->BKXRH", probs.astype(v.dtype), v_BKXCH)
    out = out / jnp.where(total == 0.0, 1.0, total)
    out_BKRH, lse_BKR = flash.merge_all(out, (top + jnp.log(total))[..., 0], axis=2)
    out = jnp.swapaxes(out_BKRH.reshape(B, K, T, G, H), 1, 2).reshape(B, T, N, H)
    return out.astype(q.dtype), jnp.swapaxes(lse_BKR.reshape(B, K, T, G), 2, 3).reshape(B, N, T)


def _product(equation: str, *operands: jax.Array) -> jax.Array:
    return jnp.einsum(equation, *operands, preferred_element_type=jnp.float32)


def _shown(data: Operands, static: Static, T: int, S: int, G: int, X: int) -> Any:
    """What the mask shows, broadcast to [B, K, X, R, C]; None if all."""

    def of_query(x):  # [B, T] to [B, 1, 1, R, 1]
        return None if x is None else jnp.repeat(x, G, axis=1)[:, None, None, :, None]

    def of_key(x):  # [B, S] to [B, 1, X, 1, C]
        return None if x is None else x.reshape(x.shape[0], 1, X, 1, S // X)

    q_positions, kv_positions = data.q_positions, data.kv_positions
    if static.structure.local and q_positions is None:
        q_positions, kv_positions = jnp.arange(T)[None], jnp.arange(S)[None]
    allow = data.allow
    if allow is not None:
        rows = jnp.repeat(allow, G, axis=1).reshape(allow.shape[0], 1, T * G, X, S // X)
        allow = jnp.swapaxes(rows, 2, 3)
    prefix = None if data.prefix is None else data.prefix[:, None, None, None, None]
    return seen(
        static.structure,
        Operands(
            q_positions=of_query(q_positions),
            q_segments=of_query(data.q_segments),
            prefix=prefix,
            allow=allow,
        ),
        Operands(kv_positions=of_key(kv_positions), kv_segments=of_key(data.kv_segments)),
    )


# Gradients are rare here, so those of the long form will do.
DECODE = Kernel(forward, xla_chunked.CHUNKED.backward)
