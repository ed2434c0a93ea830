"""The gradients of attention on a TPU: by one kernel, or by two where its sums find no room.

    OnePass     dq, dk, dv   5 products a tile of scores: s, dp, dv, dk, dq
    TwoKernels  dq           3: s, dp, dq
                dk, dv       4: s, dp, dv, dk

In both, blocks of keys own the steps of dk and dv, whose sums stay in vector memory while queries
pass by. In one pass all blocks of queries pass by again for the next keys, so their sums stay too:
G T H float32 numbers for the G heads of a key head, 16 MiB of Llama 3's 4 heads of 128 at 8,192
tokens. Longer rows take their queries in segments, from one of which to the next dk and dv pass as
float32. `form` chooses by shape.

Sources: Dao 2023 (arXiv:2307.08691); equations in flash.py.
"""

import functools
import re
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from llama_jax.kernels.attention.block_mask import Operands
from llama_jax.kernels.attention.flash import Static
from llama_jax.kernels.attention.mosaic_tpu_call import (
    VMEM_BYTES,
    Blocks,
    Call,
    Layout,
    fit,
    grown,
    prepare,
)
from llama_jax.kernels.attention.mosaic_tpu_steps import (
    FLUSH,
    STEPS_BYTES,
    both_ways,
    by_keys,
    by_queries,
)
from llama_jax.kernels.attention.mosaic_tpu_tile import (
    HIDDEN_SCORE,
    LANES,
    Tile,
    column,
    each,
    fill,
    visit,
    wide,
)
from llama_jax.kernels.target import chip, interpreting

MIB = 1 << 20
# Vector memory of a core, from jax's table of TPUs (`pltpu.get_tpu_info`). Those before are left to
# two kernels.
VMEM = ((r"v5 ?lite|v5e|v6", 128 * MIB), (r"v5|7", 64 * MIB))
MOST_SEGMENTS = 4  # each is one more kernel to compile
SUBLANES = 8


class Given(NamedTuple):
    """What a backward pass is given, heads before lengths.

    Attributes:
      q: [B, N, T, H].
      k: [B, K, S, H].
      v: [B, K, S, H].
      grad: the result's gradient, [B, N, T, H], in q's type.
      lse: [B, N, T]; -HIDDEN_SCORE where a query sees no key.
      delta: [B, N, T].
      data: the mask's arrays.
      static: the mask's structure, scale and softcap.
    """

    q: jax.Array
    k: jax.Array
    v: jax.Array
    grad: jax.Array
    lse: jax.Array
    delta: jax.Array
    data: Operands
    static: Static


Gradients = tuple[jax.Array, jax.Array, jax.Array]  # of q, k and v


@runtime_checkable
class Form(Protocol):
    """A way to compute the gradients."""

    def gradients(self, given: Given, sizes: Blocks) -> Gradients:
        """The gradients of q, k and v, in their shapes and types."""
        ...


def form(q: Any, k: Any, sizes: Blocks, steps: int) -> "Form":
    """The form for q [B, N, T, H] and k [B, K, S, H]: one pass where its sums find room.

    Its list of steps needs `steps` bytes of scalar memory. Half of what a core has beyond
    VMEM_BYTES may hold the sums; the other half is left to XLA, which brings there what later
    operations read.
    """
    (N, T), (K, S) = q.shape[1:3], k.shape[1:3]
    room = max(_vmem() - VMEM_BYTES, 0) // 2 if steps <= STEPS_BYTES else 0
    block = fit(T, sizes.dkv[0])
    blocks = -(-T // block)
    for segments in range(1, min(MOST_SEGMENTS, blocks) + 1):
        needed = sums_bytes(-(-blocks // segments), N // K, q.shape[3], block)
        # All of dq is there at once, in q's type, and dk and dv go from segment to segment in
        # float32: together no more than dq in float32.
        size = jnp.dtype(q.dtype).itemsize
        carried = 0 if segments == 1 or size == 4 else 4 * 2 * S * K
        if needed <= room and carried <= (4 - size) * T * N:
            return OnePass(segments)
    return TwoKernels()


def sums_bytes(blocks: int, G: int, H: int, block: int) -> int:
    """Bytes of the sums for dq of blocks of queries of G heads."""
    return 4 * blocks * G * (-(-H // SUBLANES) * SUBLANES) * (-(-block // LANES) * LANES)


def _vmem() -> int:
    """Bytes of vector memory of a core of the target."""
    kind = "v5e" if interpreting() else chip()
    return next((size for pattern, size in VMEM if re.search(pattern, kind)), 0)


def _inputs(call: Call, given: Given, by_keys: bool) -> tuple[tuple, tuple]:
    """Operands grown to whole blocks, and their blocks."""
    tile, H = call.tile, given.q.shape[-1]
    layout = Layout(tile, by_keys)
    inputs = (
        grown(given.q, 2, tile.q),
        grown(given.k, 2, tile.kv),
        grown(given.v, 2, tile.kv),
        grown(given.grad, 2, tile.q),
        grown(given.lse * tile.unit, 2, tile.q, -HIDDEN_SCORE)[:, :, None],
        grown(given.delta, 2, tile.q)[:, :, None],
    )
    queries, keys, sums = layout.queries(H), layout.keys(H), layout.sums()
    return inputs, (queries, keys, keys, queries, sums, sums)


# One pass.


def _one_pass_kernel(
    tile: Tile, at, prefix, q, k, v, grad, lse, delta, before, data, dq, dk, dv, dq_acc, dk_acc,
    dv_acc, k_turned, columns, *, final: bool,
):  # fmt: skip
    at_row, group = pl.program_id(0), pl.program_id(3)
    step = tile.step(at, at_row, pl.program_id(2))

    @pl.when(pl.program_id(2) == 0)
    def _():
        def block(i, _):
            dq_acc[i, group] = jnp.zeros(dq_acc.shape[2:], jnp.float32)
            return 0

        jax.lax.fori_loop(0, tile.q_blocks, block, 0)

    @pl.when(step.first & (group == 0))
    def _():
        for acc, carried in zip((dk_acc, dv_acc), before[1:] or (None, None), strict=True):
            acc[...] = jnp.zeros_like(acc) if carried is None else carried[...]
        # With keys along the lanes the sums for dq come out with queries along the lanes, and no
        # tile of scores has to be turned for them.
        k_turned[...] = k[...].astype(jnp.float32).T.astype(k.dtype)
        fill(columns, data, by_keys=True)

    def shown():
        return tile.shown(step, prefix[at_row] if tile.prefix else None, data, columns, True)

    def body(shown):
        def head(h):
            scores, slope = tile.scores(k[...], q[h], shown)
            p = tile.exp(scores - lse[h])
            dv_acc[...] += tile.dot(p.astype(grad.dtype), grad[h])
            ds = p * (tile.dot(v[...], grad[h], (1, 1)) - delta[h])
            ds = (ds if slope is None else ds * slope).astype(q.dtype)
            dk_acc[...] += tile.dot(ds, q[h])
            dq_acc[step.other, group, h] += tile.dot(k_turned[...], ds)

        each(tile.heads, head)

    visit(tile, step, shown, body)

    @pl.when(step.last & (group == tile.groups - 1))
    def _():
        dk[...] = (dk_acc[...] * (tile.static.scale if final else 1.0)).astype(dk.dtype)
        dv[...] = dv_acc[...].astype(dv.dtype)

    @pl.when(step.code == FLUSH)
    def _():
        def head(h):
            dq[h] = (dq_acc[step.other, group, h] * tile.static.scale).T.astype(dq.dtype)

        each(tile.heads, head)


def _flushed(tile: Tile, H: int) -> pl.BlockSpec:
    """Of dq [B, N, T, H]: the part's first block until it is flushed, then one after the other."""

    def at(row, head, step, group, packed, prefix):
        now = tile.step(packed, row, step)
        flush = now.code == FLUSH
        heads = head * tile.groups + jnp.where(flush, group, 0)
        return row, heads, tile.first + jnp.where(flush, now.other, 0), 0

    return pl.BlockSpec((None, tile.heads, tile.q, H), at)


@dataclass(frozen=True)
class OnePass:
    """All three by one kernel.

    Attributes:
      segments: parts in which queries are taken, one after the other.
    """

    segments: int = 1

    def gradients(self, given: Given, sizes: Blocks) -> Gradients:
        """See `Form`."""
        T, S = given.q.shape[2], given.k.shape[2]
        block, kv_block = fit(T, sizes.dkv[0]), fit(S, sizes.dkv[1])
        blocks = -(-T // block)
        some = -(-blocks // self.segments)
        found: Any = ()
        for first in range(0, blocks, some):
            part = slice(first, min(first + some, blocks))
            steps = both_ways(given.static.structure, given.data, T, S, block, kv_block, part)
            call = prepare(
                given.q, given.k, given.data, given.static, (block, kv_block), steps, part
            )
            found = self._segment(call, given, found, final=part.stop == blocks)
        dq, dk, dv = found
        return dq[:, :, :T], dk[:, :, :S], dv[:, :, :S]

    def _segment(self, call: Call, given: Given, before: tuple, final: bool) -> Any:
        """All three after one more part of the queries; `before` are those after the last.

        The part's dq is written beside the others', and its dk and dv are added.
        """
        tile, H = call.tile, given.q.shape[-1]
        inputs, specs = _inputs(call, given, by_keys=True)
        of_keys = specs[1]
        # dq of the parts before stays where it is, and dk and dv have no second place either.
        kept = (pl.BlockSpec(memory_space=pl.ANY), of_keys, of_keys) if before else ()
        aliases = {6: 0} if before else {}
        if before and not final:
            aliases |= {7: 1, 8: 2}
        key_sums = tuple(
            jax.ShapeDtypeStruct(inputs[1].shape, x.dtype if final else jnp.float32)
            for x in (given.k, given.v)
        )
        acc = pltpu.VMEM((tile.kv, H), jnp.float32)
        return call(
            functools.partial(_one_pass_kernel, final=final),
            "flash_backward",
            True,
            (*inputs, before),
            (*specs, kept),
            (jax.ShapeDtypeStruct(inputs[0].shape, given.q.dtype), *key_sums),
            (_flushed(tile, H), of_keys, of_keys),
            (
                pltpu.VMEM((tile.q_blocks, tile.groups, tile.heads, H, tile.q), jnp.float32),
                acc,
                acc,
                pltpu.VMEM((H, tile.kv), given.k.dtype),
            ),
            5,
            more_vmem=sums_bytes(tile.q_blocks, tile.groups * tile.heads, H, tile.q),
            aliases=aliases,
        )


# Two kernels.


def _dq_kernel(tile: Tile, at, prefix, q, k, v, grad, lse, delta, data, dq, acc, rows, columns):
    at_row = pl.program_id(0)
    step = tile.step(at, at_row, pl.program_id(2))
    lses, deltas = rows

    @pl.when(step.first)
    def _():
        acc[...] = jnp.zeros_like(acc)

        def head(h):
            lses[h] = column(lse[h])
            deltas[h] = column(delta[h])

        each(tile.heads, head)
        fill(columns, data, by_keys=False)

    def shown():
        return tile.shown(step, prefix[at_row] if tile.prefix else None, data, columns, False)

    def body(shown):
        def head(h):
            scores, slope = tile.scores(q[h], k[...], shown)
            p = tile.exp(scores - wide(lses[h], tile.kv))
            ds = p * (tile.dot(grad[h], v[...], (1, 1)) - wide(deltas[h], tile.kv))
            ds = ds if slope is None else ds * slope
            acc[h] += tile.dot(ds.astype(k.dtype), k[...])

        each(tile.heads, head)

    visit(tile, step, shown, body)

    @pl.when(step.last)
    def _():
        dq[...] = (acc[...] * tile.static.scale).astype(dq.dtype)


def _dkv_kernel(
    tile: Tile, at, prefix, q, k, v, grad, lse, delta, data, dk, dv, dk_acc, dv_acc,
    columns,
):  # fmt: skip
    at_row, group = pl.program_id(0), pl.program_id(3)
    step = tile.step(at, at_row, pl.program_id(2))

    @pl.when(step.first & (group == 0))
    def _():
        dk_acc[...] = jnp.zeros_like(dk_acc)
        dv_acc[...] = jnp.zeros_like(dv_acc)
        fill(columns, data, by_keys=True)

    def shown():
        return tile.shown(step, prefix[at_row] if tile.prefix else None, data, columns, True)

    def body(shown):
        def head(h):
            scores, slope = tile.scores(k[...], q[h], shown)
            p = tile.exp(scores - lse[h])
            dv_acc[...] += tile.dot(p.astype(grad.dtype), grad[h])
            ds = p * (tile.dot(v[...], grad[h], (1, 1)) - delta[h])
            ds = ds if slope is None else ds * slope
            dk_acc[...] += tile.dot(ds.astype(q.dtype), q[h])

        each(tile.heads, head)

    visit(tile, step, shown, body)

    @pl.when(step.last & (group == tile.groups - 1))
    def _():
        dk[...] = (dk_acc[...] * tile.static.scale).astype(dk.dtype)
        dv[...] = dv_acc[...].astype(dv.dtype)


@dataclass(frozen=True)
class TwoKernels:
    """dq by one kernel, dk and dv by another; both compute the scores."""

    def gradients(self, given: Given, sizes: Blocks) -> Gradients:
        """See `Form`."""
        return self._dq(given, sizes.dq), *self._dkv(given, sizes.dkv)

    def _call(self, list_of: Any, given: Given, sizes: tuple[int, int]) -> Call:
        T, S = given.q.shape[2], given.k.shape[2]
        sizes = fit(T, sizes[0]), fit(S, sizes[1])
        steps = list_of(given.static.structure, given.data, T, S, *sizes)
        return prepare(given.q, given.k, given.data, given.static, sizes, steps)

    def _dq(self, given: Given, sizes: tuple[int, int]) -> jax.Array:
        T, H = given.q.shape[2:]
        call = self._call(by_queries, given, sizes)
        tile = call.tile
        inputs, specs = _inputs(call, given, by_keys=False)
        lanes = pltpu.VMEM((tile.heads, tile.q, LANES), jnp.float32)
        (dq,) = call(
            _dq_kernel,
            "flash_dq",
            False,
            inputs,
            specs,
            (jax.ShapeDtypeStruct(inputs[0].shape, given.q.dtype),),
            (specs[0],),
            (pltpu.VMEM((tile.heads, tile.q, H), jnp.float32), (lanes, lanes)),
            3,
        )
        return dq[:, :, :T]

    def _dkv(self, given: Given, sizes: tuple[int, int]) -> tuple[jax.Array, jax.Array]:
        S, H = given.k.shape[2:]
        call = self._call(by_keys, given, sizes)
        inputs, specs = _inputs(call, given, by_keys=True)
        acc = pltpu.VMEM((call.tile.kv, H), jnp.float32)
        dk, dv = call(
            _dkv_kernel,
            "flash_dkv",
            True,
            inputs,
            specs,
            tuple(jax.ShapeDtypeStruct(inputs[1].shape, x.dtype) for x in (given.k, given.v)),
            (specs[1], specs[1]),
            (acc, acc),
            4,
        )
        return dk[:, :, :S], dv[:, :, :S]
