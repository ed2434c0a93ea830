"""Flash attention for NVIDIA GPUs, Ampere and Hopper, written in Pallas and compiled by Triton.

    forward    a program for each block of queries of a head goes over the keys that it needs
    backward   dq likewise; dk and dv: a program for each block of keys of a key head goes over the
               queries of all of its heads

Both follow Dao 2023 (FlashAttention-2, arXiv:2307.08691): no score is kept, and dq and dk, dv are
two kernels, so that no sum crosses programs and the result does not depend on their order.

Which blocks a program visits is a row of a table (`visits`): a run of blocks that the mask shows
whole, whose scores are used as they are, and a list of blocks to which the mask is applied. Hidden
blocks are in neither. Where the mask has no data the table is a constant.

On a first reading go to `_forward_program`; the backward programs have its shape.
"""

import functools
import math
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton

from llama_jax.kernels.attention.block_mask import HIDDEN, WHOLE, Operands, codes, seen
from llama_jax.kernels.attention.flash import Kernel, Static
from llama_jax.kernels.target import interpreting

LOG2E = math.log2(math.e)
LEAST = 16  # rows and columns of the smallest tile that tensor cores multiply
INFINITY = float("inf")


@dataclass(frozen=True)
class Tile:
    """How one pass is cut up.

    Attributes:
      q: queries a block; a power of two, at least 16.
      kv: keys a block; likewise.
      warps: how many groups of 32 threads share a program's work.
      stages: blocks on their way from memory while one is computed, plus one.
    """

    q: int
    kv: int
    warps: int = 4
    stages: int = 2

    def within(self, T: int, S: int) -> "Tile":
        """Smaller blocks where there are fewer queries or keys than a block holds."""
        return replace(self, q=min(self.q, power(T)), kv=min(self.kv, power(S)))


@dataclass(frozen=True)
class Tiles:
    """The tile of each pass."""

    forward: Tile
    dq: Tile
    dkv: Tile


def power(length: int) -> int:
    """The least power of two that is no less, and no less than a tile may have."""
    return max(LEAST, pl.next_power_of_2(length))


def tiles(H: int, dtype: Any) -> Tiles:
    """The tiles for a head dim and a type; `tests/aot/test_attention_gpu.py` shows what they take.

    A thread has 255 registers at most. A program holds its accumulators and its block of scores in
    registers, spread over its threads: 128 queries x 128 dims of float32 are 64 registers of 256
    threads (8 warps). What does not fit goes through memory at every step, which the test refuses.
    64 queries (keys in dkv) or more a block give Hopper's products of 4 warps (wgmma).
    """
    wide = power(H)
    if jnp.dtype(dtype).itemsize == 4:
        # Products in full float32 do not run on tensor cores: each thread holds its operands too,
        # and blocks on their way would only take shared memory from others.
        tile = Tile(32, 32, 4 if wide <= 64 else 8, 1) if wide <= 128 else Tile(16, 16, 4, 1)
        return Tiles(tile, tile, tile)
    if wide <= 64:
        return Tiles(Tile(128, 64, 8, 3), Tile(128, 64, 8, 2), Tile(64, 128, 8, 2))
    if wide <= 128:
        # dkv holds two accumulators: 128 keys a block would spill.
        return Tiles(Tile(128, 64, 8, 3), Tile(128, 64, 8, 2), Tile(64, 64, 8, 2))
    # A block of 64 x 256 is 32 KB, of which four or five must fit into shared memory.
    return Tiles(Tile(64, 32, 8, 2), Tile(64, 32, 8, 2), Tile(64, 32, 8, 2))


def why_not(case: Any) -> str | None:
    """What these kernels cannot take; `case` is an `attention.Case`."""
    H, dtype = case.q.shape[-1], case.q.dtype
    if case.bias:
        return "an additive bias is not cut into blocks"
    if case.mask.parts:
        return f"keys are summed in one, not in {len(case.mask.parts)} parts"
    if H > 256:
        return f"a head dim of {H} is more than the 256 that fit into registers"
    if dtype not in (jnp.float32, jnp.bfloat16, jnp.float16):
        return f"{dtype} is none of float32, bfloat16 and float16"
    B, T, S = case.q.shape[0], case.q.shape[1], case.k.shape[1]
    if case.mask.allow is not None and B * T * S >= 2**31:
        return f"allow has {B} x {T} x {S} entries, of which 2**31 can be addressed"
    return None


def kernel(chosen: Tiles | None = None) -> Kernel:
    """Both passes; with the tiles of the table, or with the same ones for every case."""
    return Kernel(
        functools.partial(_forward, chosen=chosen), functools.partial(_backward, chosen=chosen)
    )


def visits(code: Any, ragged: bool) -> tuple[Any, bool, bool]:
    """The table of blocks that each row of blocks visits.

    ```
    code      2 2 2 1 0 0 1        first stop count  listed
                             ->    0     3    2      3 6
    ```

    Args:
      code: [B|1, X, Y]; what `block_mask.codes` says.
      ragged: whether the last of the Y blocks is not full and so has to be masked.

    Returns:
      [B|1, X, 3 + most listed] int32: the longest run of whole blocks, and how many others are
      visited, and which; and whether any row has a run, and whether any has others.
    """
    xp: Any = np if isinstance(code, np.ndarray) else jnp
    number = np.arange(code.shape[2], dtype=np.int32)
    whole = code == WHOLE
    if ragged:
        whole = whole & (number < code.shape[2] - 1)
    broken = xp.where(whole, np.int32(-1), number)
    if xp is np:
        length = number - np.maximum.accumulate(broken, axis=2)
    else:
        length = number - jax.lax.cummax(broken, axis=2)
    stop = xp.argmax(length, axis=2, keepdims=True).astype(np.int32) + 1
    first = stop - xp.max(length, axis=2, keepdims=True)
    others = (code != HIDDEN) & ((number < first) | (number >= stop))
    count = others.sum(axis=2, keepdims=True).astype(np.int32)
    listed = xp.sort(xp.where(others, number, np.int32(code.shape[2])), axis=2)
    if xp is jnp:
        some = code.shape[2] > 1 or not ragged
        return jnp.concatenate([first, stop, count, listed], axis=2), some, True
    table = np.concatenate([first, stop, count, listed[..., : max(1, count.max())]], axis=2)
    return table, bool((stop > first).any()), bool(count.max())


class Side:
    """Queries or keys in blocks: where a block begins, and which of its entries exist."""

    def __init__(self, length: int, size: int):
        """`length` entries in blocks of `size`."""
        self.length, self.size = length, size
        self.blocks = pl.cdiv(length, size)
        self.ragged = length % size != 0

    def places(self, block: Any) -> jax.Array:
        """The numbers of a block's entries, [size]."""
        return block * self.size + jnp.arange(self.size, dtype=jnp.int32)

    def exist(self, block: Any) -> jax.Array | None:
        """Which of them are less than the length; None if all of every block."""
        return self.places(block) < self.length if self.ragged else None

    def slice(self, block: Any) -> Any:
        """The block's part of an axis."""
        return pl.ds(block * self.size, self.size)

    def vector(self, ref: Any, block: Any, *, head: tuple = (), other: Any = 0) -> jax.Array:
        """A block of [length], or of one head's of [heads, length]; `other` where it has ended."""
        return load(ref.at[(*head, self.slice(block))], self.exist(block), other)

    def matrix(
        self, ref: Any, block: Any, H: int, *, head: tuple = (), guarded: bool = True
    ) -> jax.Array:
        """A block of [length, H], or of one head's of [length, heads, H], as [size, power(H)].

        Zeros beyond the length and beyond H. A block known to be full need not be `guarded`.
        """
        exist = self.exist(block) if guarded else None
        part = ref.at[(self.slice(block), *head, pl.ds(0, power(H)))]
        return load(part, both(exist, inside(H)))

    def store(self, ref: Any, block: Any, H: int, x: jax.Array) -> None:
        """Writes what `matrix` would read; `ref` is the block alone."""
        mask = both(self.exist(block), inside(H))
        if mask is None:
            ref[...] = x.astype(ref.dtype)
        else:
            triton.store(ref, x.astype(ref.dtype), mask=mask)


def inside(H: int) -> jax.Array | None:
    """Which of a padded head's entries are its own; None if all."""
    return None if power(H) == H else jnp.arange(power(H)) < H


def both(rows: jax.Array | None, columns: jax.Array | None) -> jax.Array | None:
    """Rows that exist by columns that exist; None if all do."""
    if rows is None or columns is None:
        return columns[None] if rows is None and columns is not None else _column(rows)
    return rows[:, None] & columns[None]


def _column(x: jax.Array | None) -> jax.Array | None:
    return None if x is None else x[:, None]


def _row(x: jax.Array | None) -> jax.Array | None:
    return None if x is None else x[None]


def load(ref: Any, mask: jax.Array | None, other: Any = 0) -> jax.Array:
    """What is there; `other` where the mask says no."""
    return ref[...] if mask is None else triton.load(ref, mask=mask, other=other)


def shown(
    static: Static, data: Operands, q: Side, i: Any, kv: Side, j: Any, turned: bool = False
) -> jax.Array | None:
    """Which scores of block i of the queries and j of the keys count; None if all.

    Broadcasts to [queries, keys], or [keys, queries] if `turned`. Keys that do not exist do not
    count.
    """
    of_q, of_kv = (_row, _column) if turned else (_column, _row)

    def entries(ref, side, block):
        return None if ref is None else side.vector(ref, block)

    positions = [entries(data.q_positions, q, i), entries(data.kv_positions, kv, j)]
    if static.structure.local and data.q_positions is None:
        positions = [q.places(i), kv.places(j)]
    allow = None
    if data.allow is not None:
        part = data.allow.at[q.slice(i), kv.slice(j)]
        allow = load(part, both(q.exist(i), kv.exist(j)))
    counts = seen(
        static.structure,
        Operands(
            q_positions=of_q(positions[0]),
            q_segments=of_q(entries(data.q_segments, q, i)),
            prefix=None if data.prefix is None else data.prefix[...],
            allow=allow.T if turned and allow is not None else allow,
        ),
        Operands(
            kv_positions=of_kv(positions[1]),
            kv_segments=of_kv(entries(data.kv_segments, kv, j)),
        ),
    )
    exist = of_kv(kv.exist(j))
    if exist is None or counts is None:
        return exist if counts is None else counts
    return counts & exist


def factor(static: Static) -> float:
    """By which `scaled` has to be multiplied to be log2(e) times the scores."""
    if static.softcap is not None:
        return static.softcap * LOG2E
    return static.scale * LOG2E if static.scale > 0 else 1.0


def scaled(products: jax.Array, static: Static, dtype: Any) -> jax.Array:
    """The scores but for a positive `factor`, which `exp2` takes in at no cost."""
    if static.softcap is not None:
        return _tanh(products * (static.scale / static.softcap), dtype)
    return products if static.scale > 0 else products * (static.scale * LOG2E)


def _tanh(x: jax.Array, dtype: Any) -> jax.Array:
    if dtype == jnp.float32:
        return jnp.tanh(x)
    # Its error is one of float32 beside 1, far below that of products of bfloat16, and it takes
    # two instructions of the special function unit and no branch.
    return 1 - 2 / (1 + exp2(x, 2 * LOG2E, jnp.zeros_like(x)))


def exp2(z: jax.Array, factor: float, base: jax.Array) -> jax.Array:
    """2**(z factor - base), base broadcast to z's shape; results below 2**-126 are 0."""
    if interpreting():
        return jnp.exp2(z * factor - base)
    # Two instructions. Written in jnp the product and the difference are rounded apart, in two, and
    # small results are kept, which takes three more.
    number = np.float32(factor).view(np.uint32)
    asm = f"{{ .reg .f32 x; fma.rn.f32 x, $1, 0f{number:08X}, $2; ex2.approx.ftz.f32 $0, x; }}"
    return triton.elementwise_inline_asm(
        asm,
        args=[z, jnp.broadcast_to(-base, z.shape)],
        constraints="=f,f,f",
        pack=1,
        result_shape_dtypes=[jax.ShapeDtypeStruct(z.shape, z.dtype)],
    )[0]


def dot(a: jax.Array, b: jax.Array) -> jax.Array:
    """a b in float32; of float32 in full, not rounded to TF32 (11 bits)."""
    precision = jax.lax.Precision.HIGHEST if a.dtype == jnp.float32 else None
    return triton.dot(a, b, precision=precision)


def begin(rows: int, wide: int) -> tuple[jax.Array, ...]:
    """What `absorb` has of a block of queries before the first keys.

    The sum of p v, the greatest score (but for `factor`) and the sum of p.
    """
    return (
        jnp.zeros((rows, wide), jnp.float32),
        jnp.full((rows,), -INFINITY, jnp.float32),
        jnp.zeros((rows,), jnp.float32),
    )


def absorb(carry: Any, q_TH: Any, k_SH: Any, v_SH: Any, counts: Any, static: Static) -> Any:
    """Takes a block of keys into the sums, which are relative to the greatest score so far."""
    acc_TH, top_T, total_T = carry
    z_TS = scaled(dot(q_TH, k_SH.T), static, q_TH.dtype)
    if counts is not None:
        z_TS = jnp.where(counts, z_TS, -INFINITY)
    new_T = jnp.maximum(top_T, jnp.max(z_TS, axis=1))
    # A query that has seen no key: -inf - -inf would be NaN.
    base_T = new_T if counts is None else jnp.where(new_T > -INFINITY, new_T, 0.0)
    base_T = base_T * factor(static)
    p_TS = exp2(z_TS, factor(static), base_T[:, None])
    kept_T = exp2(top_T, factor(static), base_T)
    acc_TH = acc_TH * kept_T[:, None] + dot(p_TS.astype(v_SH.dtype), v_SH)
    return acc_TH, new_T, total_T * kept_T + jnp.sum(p_TS, axis=1)


def finish(carry: Any, static: Static) -> tuple[jax.Array, jax.Array]:
    """The result and lse; zeros and -inf where no key was seen."""
    acc_TH, top_T, total_T = carry
    lse_T = top_T * (factor(static) / LOG2E) + jnp.log(total_T)
    return acc_TH * (1 / jnp.where(total_T == 0, 1.0, total_T))[:, None], lse_T


def call(program: Any, tile: Tile, name: str, **rest: Any) -> Any:
    """A pallas_call of a program, interpreted if kernels are."""
    return pl.pallas_call(
        program,
        interpret=interpreting(),
        compiler_params=triton.CompilerParams(num_warps=tile.warps, num_stages=tile.stages),
        name=name,
        **rest,
    )


def whole_row(x: Any) -> Any:
    """The specs of operands of which a program reads its own row of the batch.

    The batch is the last axis of every grid here.
    """

    def spec(x):
        shape = (None, *x.shape[1:])
        return pl.BlockSpec(shape, lambda *ids: (ids[-1], *(0 for _ in x.shape[1:])))

    return jax.tree.map(spec, x)


def _table_spec(table: Any, row: Any) -> Any:
    """A row of the table of `visits`; it may be the same one for all of the batch."""
    alone = table.shape[0] == 1
    return pl.BlockSpec(
        (None, None, table.shape[2]), lambda *ids: (0 if alone else ids[-1], row(ids[0]), 0)
    )


def _walk(table: Any, has_run: bool, has_others: bool, step: Any, carry: Any) -> Any:
    """Takes `step(block, carry, masked)` over a row of the table of `visits`."""
    if has_run:
        carry = jax.lax.fori_loop(table[0], table[1], lambda j, carry: step(j, carry, False), carry)
    if has_others:
        carry = jax.lax.fori_loop(
            0, table[2], lambda i, carry: step(table[3 + i], carry, True), carry
        )
    return carry


# The first pass.


def _forward(q, k, v, data: Operands, static: Static, *, chosen: Tiles | None):
    (B, T, N, H), (S, K) = q.shape, k.shape[1:3]
    tile = (chosen or tiles(H, q.dtype)).forward.within(T, S)
    rows, columns = Side(T, tile.q), Side(S, tile.kv)
    code = codes(static.structure, data, T, S, tile.q, tile.kv)
    table, has_run, has_others = visits(code, columns.ragged)

    # The last blocks of a causal mask see most keys: they begin first, so that none ends late.
    def block(i):
        return rows.blocks - 1 - i

    def program(table, q, k, v, data, out, lse):
        i = block(pl.program_id(0))
        q_TH = load(q, both(rows.exist(i), inside(H)))

        def step(j, carry, masked):
            k_SH = columns.matrix(k, j, H, guarded=masked)
            v_SH = columns.matrix(v, j, H, guarded=masked)
            counts = shown(static, data, rows, i, columns, j) if masked else None
            return absorb(carry, q_TH, k_SH, v_SH, counts, static)

        start = begin(rows.size, power(H))
        out_TH, lse_T = finish(_walk(table, has_run, has_others, step, start), static)
        rows.store(out, i, H, out_TH)
        triton.store(lse, lse_T, mask=rows.exist(i))

    wide, group = power(H), N // K
    of_query = pl.BlockSpec((None, rows.size, None, wide), lambda i, n, b: (b, block(i), n, 0))
    of_key = pl.BlockSpec((None, S, None, wide), lambda i, n, b: (b, 0, jax.lax.div(n, group), 0))
    return call(
        program,
        tile,
        "attention_forward",
        grid=(rows.blocks, N, B),
        in_specs=[_table_spec(table, block), of_query, of_key, of_key, whole_row(data)],
        out_specs=[
            of_query,
            pl.BlockSpec((None, None, rows.size), lambda i, n, b: (b, n, block(i))),
        ],
        out_shape=[
            jax.ShapeDtypeStruct(q.shape, q.dtype),
            jax.ShapeDtypeStruct((B, N, T), jnp.float32),
        ],
    )(table, q, k, v, data)


# The second pass: p = exp(s - lse), ds = p (do v' - delta), dq = ds k, dv = p' do, dk = ds' q.


def _backward(q, k, v, data, static, lse, delta, grad, *, chosen: Tiles | None):
    # A query without keys has lse = -inf; with +inf all of its p become 0, as they should be.
    lse = jnp.where(lse > -INFINITY, lse * LOG2E, INFINITY)
    chosen = chosen or tiles(q.shape[-1], q.dtype)
    given = (q, k, v, grad, lse, delta)
    dq = _queries_gradient(*given, data, static, chosen.dq)
    return dq, *_keys_gradients(*given, data, static, chosen.dkv)


def _weights(products, dp, lse, delta, static, dtype, counts):
    """p and ds / scale of one block, from q k' and do v'."""
    z = scaled(products, static, dtype)
    hidden = z if counts is None else jnp.where(counts, z, -INFINITY)
    p = exp2(hidden, factor(static), lse)
    ds = p * (dp - delta)
    return p, ds if static.softcap is None else ds * (1 - z * z)


def _queries_gradient(q, k, v, grad, lse, delta, data, static, tile: Tile):
    (B, T, N, H), (S, K) = q.shape, k.shape[1:3]
    tile = tile.within(T, S)
    rows, columns = Side(T, tile.q), Side(S, tile.kv)
    code = codes(static.structure, data, T, S, tile.q, tile.kv)
    table, has_run, has_others = visits(code, columns.ragged)

    def block(i):
        return rows.blocks - 1 - i

    def program(table, q, k, v, grad, lse, delta, data, dq):
        i = block(pl.program_id(0))
        mask = both(rows.exist(i), inside(H))
        q_TH, grad_TH = load(q, mask), load(grad, mask)
        lse_T = load(lse, rows.exist(i), INFINITY)[:, None]
        delta_T = load(delta, rows.exist(i))[:, None]

        def step(j, dq_TH, masked):
            k_SH = columns.matrix(k, j, H, guarded=masked)
            v_SH = columns.matrix(v, j, H, guarded=masked)
            counts = shown(static, data, rows, i, columns, j) if masked else None
            _, ds_TS = _weights(
                dot(q_TH, k_SH.T), dot(grad_TH, v_SH.T), lse_T, delta_T, static, q.dtype, counts
            )
            return dq_TH + dot(ds_TS.astype(k.dtype), k_SH)

        start = jnp.zeros((rows.size, power(H)), jnp.float32)
        dq_TH = _walk(table, has_run, has_others, step, start)
        rows.store(dq, i, H, dq_TH * static.scale)

    wide, group = power(H), N // K
    of_query = pl.BlockSpec((None, rows.size, None, wide), lambda i, n, b: (b, block(i), n, 0))
    of_key = pl.BlockSpec((None, S, None, wide), lambda i, n, b: (b, 0, jax.lax.div(n, group), 0))
    number = pl.BlockSpec((None, None, rows.size), lambda i, n, b: (b, n, block(i)))
    return call(
        program,
        tile,
        "attention_dq",
        grid=(rows.blocks, N, B),
        in_specs=[
            _table_spec(table, block),
            *(of_query, of_key, of_key, of_query, number, number),
            whole_row(data),
        ],
        out_specs=of_query,
        out_shape=jax.ShapeDtypeStruct(q.shape, q.dtype),
    )(table, q, k, v, grad, lse, delta, data)


def _keys_gradients(q, k, v, grad, lse, delta, data, static, tile: Tile):
    (B, T, N, H), (S, K) = q.shape, k.shape[1:3]
    tile = tile.within(T, S)
    rows, columns = Side(T, tile.q), Side(S, tile.kv)
    code = codes(static.structure, data, T, S, tile.q, tile.kv)
    table, has_run, has_others = visits(code.swapaxes(1, 2), rows.ragged)
    wide, group = power(H), N // K

    def program(table, q, k, v, grad, lse, delta, data, dk, dv):
        j = pl.program_id(0)
        mask = both(columns.exist(j), inside(H))
        k_SH, v_SH = load(k, mask), load(v, mask)

        # Scores are turned, keys by queries: then neither p nor ds has to be for the products.
        def step(g, i, carry, masked):
            dk_SH, dv_SH = carry
            q_TH = rows.matrix(q, i, H, head=(g,), guarded=masked)
            grad_TH = rows.matrix(grad, i, H, head=(g,), guarded=masked)
            lse_T = rows.vector(lse, i, head=(g,), other=INFINITY)[None]
            delta_T = rows.vector(delta, i, head=(g,))[None]
            counts = shown(static, data, rows, i, columns, j, turned=True) if masked else None
            p_ST, ds_ST = _weights(
                dot(k_SH, q_TH.T), dot(v_SH, grad_TH.T), lse_T, delta_T, static, q.dtype, counts
            )
            dv_SH = dv_SH + dot(p_ST.astype(v.dtype), grad_TH)
            return dk_SH + dot(ds_ST.astype(q.dtype), q_TH), dv_SH

        def head(g, carry):
            one = functools.partial(step, g)
            return _walk(table, has_run, has_others, one, carry)

        start = jnp.zeros((columns.size, wide), jnp.float32)
        dk_SH, dv_SH = jax.lax.fori_loop(0, group, head, (start, start))
        columns.store(dk, j, H, dk_SH * static.scale)
        columns.store(dv, j, H, dv_SH)

    of_query = pl.BlockSpec((None, T, group, wide), lambda j, h, b: (b, 0, h, 0))
    of_key = pl.BlockSpec((None, columns.size, None, wide), lambda j, h, b: (b, j, h, 0))
    number = pl.BlockSpec((None, group, T), lambda j, h, b: (b, h, 0))
    return call(
        program,
        tile,
        "attention_dkv",
        grid=(columns.blocks, K, B),
        in_specs=[
            _table_spec(table, lambda j: j),
            *(of_query, of_key, of_key, of_query, number, number),
            whole_row(data),
        ],
        out_specs=[of_key, of_key],
        out_shape=[jax.ShapeDtypeStruct(x.shape, x.dtype) for x in (k, v)],
    )(table, q, k, v, grad, lse, delta, data)


GPU = kernel()
