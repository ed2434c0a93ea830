"""Decode attention for NVIDIA GPUs: a few queries against a long cache, split over its keys.

For one query of each row `triton` has a program for each head: far fewer than a GPU has
multiprocessors, and the heads of a key head each read its keys. Here

- all G heads of a key head, and all queries, are rows of one tile: a key is read once for them;
- the keys that a row of the batch sees are shared out to several programs, each of which gives its
  result and lse; the results are weighted by their lse (flash-decoding, Dao et al. 2023,
  https://crfm.stanford.edu/2023/10/12/flashdecoding.html).

Blocks before the first and after the last that any query sees, such as those beyond a row's length,
are not read; a row's programs share what is left evenly. The backward pass is that of `triton`.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import pallas as pl
from jax.experimental.pallas.triton import store

from llama_jax.kernels.attention import flash, triton
from llama_jax.kernels.attention.block_mask import HIDDEN, Operands, codes
from llama_jax.kernels.attention.flash import Kernel, Static
from llama_jax.kernels.attention.triton import Side, Tile, power

# Four for each of the 132 multiprocessors of an H100, so that one's loads go on while another
# computes; 48 KB of shared memory and 4 warps each leave room for that.
PROGRAMS = 4 * 132
MOST_ROWS = 64  # queries times heads of a key head; with more, `triton` has enough to do


def tile(rows: int, H: int, dtype: Any) -> Tile:
    """The time goes into reading keys: blocks are on their way while one is computed."""
    if jnp.dtype(dtype).itemsize == 4:
        return Tile(power(rows), 32 if power(H) <= 128 else 16, 4, 2)
    return Tile(power(rows), 64 if power(H) <= 128 else 32, 4, 3)


def why_not(case: Any) -> str | None:
    """What this kernel cannot take; `case` is an `attention.Case`."""
    T, group = case.q.shape[1], case.q.shape[2] // case.k.shape[2]
    if T * group > MOST_ROWS:
        return f"{T} queries of {group} heads a key head are more than {MOST_ROWS} rows"
    return triton.why_not(case)


def kernel(kv: int | None = None, splits: int | None = None) -> Kernel:
    """Both passes; with blocks of `kv` keys and `splits` programs a row and key head if given."""
    return Kernel(functools.partial(_forward, kv=kv, splits=splits), triton.GPU.backward)


def _forward(q, k, v, data: Operands, static: Static, *, kv: int | None, splits: int | None):
    (B, T, N, H), (S, K) = q.shape, k.shape[1:3]
    group, wide = N // K, power(H)
    cut = tile(T * group, H, q.dtype)
    # Row r of a tile is query r // group and head r % group of the key head.
    rows, columns = Side(T * group, cut.q), Side(S, min(kv or cut.kv, power(S)))
    splits = splits or max(1, min(columns.blocks, PROGRAMS // (B * K)))
    table = span(codes(static.structure, data, T, S, T, columns.size)[:, 0])
    data = _of_rows(data, static, B, T, S, group, rows.size)

    def program(table, q, k, v, data, out, lse):
        share = pl.program_id(0)
        mask = triton.both(rows.exist(0), triton.inside(H))
        q_RH = triton.load(q, mask)

        def step(j, carry):
            k_SH, v_SH = columns.matrix(k, j, H), columns.matrix(v, j, H)
            counts = triton.shown(static, data, rows, 0, columns, j)
            return triton.absorb(carry, q_RH, k_SH, v_SH, counts, static)

        first = table[0]
        blocks = jnp.maximum(table[1] - first, 0)
        mine, others = (first + before(n, blocks, splits) for n in (share, share + 1))
        start = triton.begin(rows.size, wide)
        out_RH, lse_R = triton.finish(jax.lax.fori_loop(mine, others, step, start), static)
        store(out, out_RH, mask=mask)
        store(lse, lse_R, mask=rows.exist(0))

    of_query = pl.BlockSpec((None, None, rows.size, wide), lambda s, h, b: (b, h, 0, 0))
    # A cache lies head by head (`layers.slots`): turned so, none of it moves.
    k_BKSH, v_BKSH = (jnp.swapaxes(x, 1, 2) for x in (k, v))
    of_key = pl.BlockSpec((None, None, S, wide), lambda s, h, b: (b, h, 0, 0))
    alone = table.shape[0] == 1
    out_BXKRH, lse_BXKR = triton.call(
        program,
        cut,
        "attention_decode",
        grid=(splits, K, B),
        in_specs=[
            pl.BlockSpec((None, 2), lambda s, h, b: (0 if alone else b, 0)),
            *(of_query, of_key, of_key, triton.whole_row(data)),
        ],
        out_specs=[
            pl.BlockSpec((None, None, None, rows.size, wide), lambda s, h, b: (b, s, h, 0, 0)),
            pl.BlockSpec((None, None, None, rows.size), lambda s, h, b: (b, s, h, 0)),
        ],
        out_shape=[
            jax.ShapeDtypeStruct((B, splits, K, T * group, H), jnp.float32),
            jax.ShapeDtypeStruct((B, splits, K, T * group), jnp.float32),
        ],
    )(table, _to_rows(q, K), k_BKSH, v_BKSH, data)
    out_BKRH, lse_BKR = flash.merge_all(out_BXKRH, lse_BXKR, axis=1)
    out = out_BKRH.reshape(B, K, T, group, H).swapaxes(1, 2).reshape(B, T, N, H)
    lse = lse_BKR.reshape(B, K, T, group).swapaxes(2, 3).reshape(B, N, T)
    return out.astype(q.dtype), lse


def before(n: Any, blocks: Any, splits: int) -> Any:
    """How many of a row's blocks the first n of its programs take; int32 holds every step of it."""
    few, more = jax.lax.div(blocks, splits), jax.lax.rem(blocks, splits)
    return few * n + jnp.minimum(n, more)


def span(code: Any) -> Any:
    """The first block of keys that is not hidden, and the one after the last: [B|1, 2] int32.

    Blocks between them are read even if hidden: in a cache there are hardly any, and a list of the
    others, as `triton` has one, would have to be sorted for every token.
    """
    xp: Any = np if isinstance(code, np.ndarray) else jnp
    number = np.arange(code.shape[1], dtype=np.int32)
    first = xp.where(code != HIDDEN, number, np.int32(code.shape[1])).min(axis=1)
    stop = xp.where(code != HIDDEN, number + 1, np.int32(0)).max(axis=1)
    return xp.stack([first, stop], axis=1)


def _to_rows(q: jax.Array, K: int) -> jax.Array:
    """[B, T, N, H] to [B, K, T G, H]; for one query a reshape."""
    B, T, N, H = q.shape
    return q.reshape(B, T, K, N // K, H).swapaxes(1, 2).reshape(B, K, T * N // K, H)


def _of_rows(
    data: Operands, static: Static, B: int, T: int, S: int, group: int, rows: int
) -> Operands:
    """The mask's data of each of a tile's `rows`; a query's is repeated for its heads."""
    if static.structure.local and data.q_positions is None:
        q_positions, kv_positions = (
            jnp.broadcast_to(jnp.arange(length, dtype=jnp.int32), (B, length)) for length in (T, S)
        )
        data = data._replace(q_positions=q_positions, kv_positions=kv_positions)

    def each(x):
        if x is None:
            return None
        # jax checks the bounds of a slice, also where a mask keeps it from being read.
        beyond = [(0, 0), (0, rows - T * group), *[(0, 0)] * (x.ndim - 2)]
        return jnp.pad(jnp.repeat(x, group, axis=1), beyond)

    return data._replace(
        q_positions=each(data.q_positions),
        q_segments=each(data.q_segments),
        allow=each(data.allow),
    )


DECODE = kernel()
