"""Flash attention for TPUs in Pallas (Mosaic), forward and backward.

Three kernels: the result and its lse, the gradient of the queries, the gradients of keys and
values. Each sums over the blocks that `tpu_steps` lists. A tile of scores has the owner's entries
in its rows, so that what is summed for each owner stays a column:

    forward, dq     owner: queries   scores [q_block, kv_block]   sums over keys
    dkv             owner: keys      scores [kv_block, q_block]   sums over queries

Up to 8 query heads that share a key head are handled in one step, so that a block of keys is
fetched once for all of them. What a row of the tile needs (positions, segments, lse) arrives along
the lanes and is turned into a column once per owner.

Sources: Dao 2023 (arXiv:2307.08691); equations in flash.py.
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array, Float

from llama_jax.kernels.attention.block_mask import Operands
from llama_jax.kernels.attention.flash import Kernel, Static
from llama_jax.kernels.attention.mask import Mask
from llama_jax.kernels.attention.mosaic_tpu_steps import Steps, by_keys, by_queries, longest
from llama_jax.kernels.attention.mosaic_tpu_tile import (
    HIDDEN_SCORE,
    LANES,
    Columns,
    Tile,
    column,
    each,
    fill,
    row,
    visit,
    wide,
)
from llama_jax.kernels.target import interpreting

MOST_HEADS = 8  # of queries in one step; more would need smaller blocks of queries
# Of 1 MiB scalar memory on every generation since v4; the rest is the compiler's.
STEPS_BYTES = 768 * 1024
# A kernel gets 16 MiB of vector memory unless it asks: enough up to head dim 128. Generations since
# v5 have 64 to 128; what a kernel asks for, XLA cannot use to prefetch.
VMEM_BYTES = 32 * 1024 * 1024
MOST_HEAD_DIM = 256


@dataclass(frozen=True)
class Blocks:
    """Queries and keys of a block, in each of the three kernels."""

    forward: tuple[int, int]
    dq: tuple[int, int]
    dkv: tuple[int, int]


def blocks(head_dim: int, dtype: Any) -> Blocks:
    """The block sizes for a head dim and a type, the same for all generations since v4.

    512 x 1024 scores in float32 are 2 MiB, and a step of four heads takes microseconds where its
    start costs a third of one. The backward tiles hold two matrices of scores; wide heads have
    larger sums beside them; float32 products (six passes of the matrix unit) keep their operands
    in parts, and take the compiler half a minute in larger blocks.
    """
    wide = head_dim > 128
    if jnp.dtype(dtype).itemsize == 4:
        size = (256, 256) if wide else (256, 512)
        return Blocks(size, size, size)
    if wide:
        return Blocks((512, 512), (256, 512), (256, 512))
    return Blocks((512, 1024), (512, 512), (512, 512))


def why_not(case: Any) -> str | None:
    """Why the kernel cannot take an `attention.Case`, None if it can."""
    B, T, N, H = case.q.shape
    S, K = case.k.shape[1:3]
    if case.bias:
        return "an additive bias is not cut into blocks"
    if case.mask.parts:
        return f"keys are not summed apart (mask parts {case.mask.parts})"
    if case.q.dtype not in (jnp.bfloat16, jnp.float32):
        return f"queries are {case.q.dtype}; the kernel takes bfloat16 and float32"
    if H > MOST_HEAD_DIM:
        return f"head dim {H} is more than {MOST_HEAD_DIM}"
    if not (B and T and S and H):
        return f"q {case.q.shape} and k {case.k.shape} have an empty axis"
    mask = case.mask
    moved = mask.q_positions is not None or mask.kv_positions is not None or mask.prefix is not None
    sizes = blocks(H, case.q.dtype)
    for block in (sizes.forward, sizes.dq, sizes.dkv):
        needed = _list_bytes(mask.structure, moved, T, S, block)
        if needed > STEPS_BYTES:
            return f"{T} x {S} scores in blocks of {block} need {needed} bytes of scalar memory"
    return None


def _list_bytes(structure: Mask, moved: bool, T: int, S: int, block: tuple[int, int]) -> int:
    return 4 * longest(structure, moved, T, S, fit(T, block[0]), fit(S, block[1]))


def _forward_kernel(tile: Tile, at, prefix, q, k, v, data, out, lse, acc, top, total, columns):
    at_row = pl.program_id(0)
    step = tile.step(at, at_row, pl.program_id(2))

    @pl.when(step.first)
    def _():
        acc[...] = jnp.zeros_like(acc)
        top[...] = jnp.full_like(top, HIDDEN_SCORE)
        total[...] = jnp.zeros_like(total)
        fill(columns, data, by_keys=False)

    def shown():
        return tile.shown(step, prefix[at_row] if tile.prefix else None, data, columns, False)

    def body(shown):
        def head(h):
            scores, _ = tile.scores(q[h], k[...], shown)
            before = top[h]
            now = jnp.maximum(before, jnp.max(scores, axis=1, keepdims=True))
            # A row that has only hidden scores counts them as ones; the first one seen makes
            # `shrink` zero and forgets them, and if there is none the end does.
            p = tile.exp(scores - wide(now, scores.shape[1]))
            shrink = tile.exp(before - now)
            top[h] = now
            total[h] = total[h] * shrink + jnp.sum(p, axis=1, keepdims=True)
            values = v[...] if shown is None else tile.there(step.other, v[...])
            acc[h] = acc[h] * wide(shrink, acc.shape[2]) + tile.dot(p.astype(v.dtype), values)

        each(tile.heads, head)

    visit(tile, step, shown, body)

    @pl.when(step.last)
    def _():
        def head(h):
            any_seen = top[h] > HIDDEN_SCORE / 2
            # Hidden in a step of its own, an owner has total = 0.
            weight = jnp.where(any_seen, total[h], 1.0)
            inverse = jnp.where(any_seen, 1.0 / weight, 0.0)
            out[h] = (acc[h] * wide(inverse, acc.shape[2])).astype(out.dtype)
            logs = jnp.log(weight) + top[h] * (1.0 / tile.unit)
            lse[h] = row(jnp.where(any_seen, logs, -jnp.inf))

        each(tile.heads, head)


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


class Layout(NamedTuple):
    """Where the blocks of each operand lie; the grid is (row, head group, step[, group])."""

    tile: Tile
    by_keys: bool

    def spec(self, shape: tuple[int | None, ...], index: Callable[..., tuple]) -> pl.BlockSpec:
        """A block at index(row, group of query heads, key head, q block, kv block)."""
        tile = self.tile

        def at(row, head, step, *rest):
            now = tile.step(rest[-2], row, step)
            if self.by_keys:
                return index(row, head * tile.groups + rest[0], head, now.other, now.owner)
            return index(row, head, head // tile.groups, now.owner, now.other)

        return pl.BlockSpec(shape, at)

    def queries(self, width: int) -> pl.BlockSpec:
        """Of [B, N, T, width]."""
        shape = (None, self.tile.heads, self.tile.q, width)
        return self.spec(shape, lambda row, heads, head, q, kv: (row, heads, q, 0))

    def keys(self, width: int) -> pl.BlockSpec:
        """Of [B, K, S, width], or as the tile has them."""
        block = self.tile.block_of_keys
        shape = block(0, 0, 0, width)[0]
        return self.spec(shape, lambda row, heads, head, q, kv: block(row, head, kv, width)[1])

    def sums(self) -> pl.BlockSpec:
        """Of [B, N, 1, T]: one number a query, along the lanes."""
        shape = (None, self.tile.heads, 1, self.tile.q)
        return self.spec(shape, lambda row, heads, head, q, kv: (row, heads, 0, q))

    def operands(self, data: Operands) -> Operands:
        """Of positions and segments [B, 1, length], and allow [B, T, S]."""
        q, kv = self.tile.q, self.tile.kv
        of_q = self.spec((None, 1, q), lambda row, heads, head, q, kv: (row, 0, q))
        of_kv = self.spec((None, 1, kv), lambda row, heads, head, q, kv: (row, 0, kv))
        allow = self.spec((None, q, kv), lambda row, heads, head, q, kv: (row, q, kv))
        specs = (of_q, of_kv, of_q, of_kv, None, allow)
        pairs = zip(data, specs, strict=True)
        return Operands(*(None if x is None else spec for x, spec in pairs))  # pyright: ignore

    def columns(self, data: Operands) -> Columns:
        """Scratch for the owner's data."""
        scratch = pltpu.VMEM((self.tile.kv if self.by_keys else self.tile.q, LANES), jnp.int32)
        return Columns(
            None if data.q_positions is None else scratch,
            None if data.q_segments is None else scratch,
        )


class Call(NamedTuple):
    """One run of a kernel: operands padded to whole blocks, heads before lengths."""

    tile: Tile
    steps: Steps
    data: Operands

    def __call__(
        self, kernel: Any, name: str, by_keys: bool, inputs: tuple, in_specs: tuple,
        out_shape: tuple, out_specs: tuple, scratch: tuple, products: int,
    ) -> Any:  # fmt: skip
        """Runs it; `products` are the matrix products of a tile."""
        tile, q, k = self.tile, inputs[0], inputs[1]
        B, N, _, H = q.shape
        layout = Layout(tile, by_keys)
        grid = (B, k.shape[1]) if by_keys else (B, N // tile.heads)
        groups = (tile.groups,) if by_keys else ()
        prefix = self.data.prefix
        data = self.data._replace(prefix=None)
        scores = B * N * self.steps.length * tile.q * tile.kv
        fetched = B * N // tile.heads * self.steps.length * 2 * H * k.dtype.itemsize
        fetched *= tile.heads * tile.q if by_keys else tile.kv
        return pl.pallas_call(
            functools.partial(kernel, tile),
            grid_spec=pltpu.PrefetchScalarGridSpec(
                num_scalar_prefetch=2,
                # The interpreter knows no grid that is computed while running.
                grid=(
                    *grid,
                    self.steps.length if interpreting() else self.steps.count,
                    *groups,
                ),
                in_specs=[*in_specs, layout.operands(data)],
                out_specs=out_specs,
                scratch_shapes=[*scratch, layout.columns(data)],
            ),
            out_shape=out_shape,
            compiler_params=pltpu.CompilerParams(
                dimension_semantics=("parallel", "parallel", "arbitrary", "arbitrary")[
                    : 3 + len(groups)
                ],
                vmem_limit_bytes=VMEM_BYTES,
            ),
            # With data, as if it hid nothing.
            cost_estimate=pl.CostEstimate(
                flops=2 * products * scores * H,
                transcendentals=scores,
                bytes_accessed=fetched
                + sum(x.size * x.dtype.itemsize for x in (*inputs, *out_shape)),
            ),
            interpret=interpreting(),
            name=name,
        )(
            jnp.asarray(self.steps.packed),
            jnp.zeros((1,), jnp.int32) if prefix is None else prefix,
            *inputs,
            data,
        )


def fit(length: int, block: int) -> int:
    """A block size not above `block` that leaves little padding; whole lanes where it is larger."""
    unit = min(block, LANES)
    count = -(-length // block)
    return -(-length // (count * unit)) * unit


def _grown(x: Any, axis: int, block: int, value: Any = 0) -> Any:
    """Padded to whole blocks."""
    if x is None or x.shape[axis] % block == 0:
        return x
    pad = [(0, 0)] * x.ndim
    pad[axis] = (0, -x.shape[axis] % block)
    return jnp.pad(x, pad, constant_values=value)


def prepare(
    q: Any, k: Any, data: Operands, static: Static, sizes: tuple[int, int], steps: Steps
) -> Call:
    """The tile, its steps and the mask's data for q [B, N, T, H] and k [B, K, S, H]."""
    (N, T), (K, S) = q.shape[1:3], k.shape[1:3]
    G = N // K
    heads = max(h for h in range(1, min(G, MOST_HEADS) + 1) if G % h == 0)
    exact = q.dtype == jnp.float32
    has_prefix = data.prefix is not None
    tile = Tile(
        static,
        *sizes,
        T,
        S,
        heads,
        G // heads,
        exact,
        has_prefix,
        steps.stride,
        steps.kinds,
    )

    def flat(x, block):
        return None if x is None else _grown(x, 1, block)[:, None]

    # Beyond the last key is nothing to read that matters, see `Tile.there`.
    padded = Operands(
        flat(data.q_positions, tile.q),
        flat(data.kv_positions, 1),
        flat(data.q_segments, tile.q),
        flat(data.kv_segments, 1),
        data.prefix,
        _grown(data.allow, 1, tile.q),
    )  # pyright: ignore
    return Call(tile, steps, padded)


def forward_of(call: Call, q: Any, k: Any, v: Any) -> tuple[jax.Array, jax.Array]:
    """The first pass, [B, N, T, H] and [B, N, T] of q [B, N, T, H], k and v [B, K, S, H]."""
    tile, (T, H) = call.tile, q.shape[2:]
    layout = Layout(tile, by_keys=False)
    q = _grown(q, 2, tile.q)
    out, lse = call(
        _forward_kernel,
        "flash_forward",
        False,
        (q, k, v),
        (layout.queries(H), layout.keys(H), layout.keys(H)),
        (
            jax.ShapeDtypeStruct(q.shape, q.dtype),
            jax.ShapeDtypeStruct((*q.shape[:2], 1, q.shape[2]), jnp.float32),
        ),
        (layout.queries(H), layout.sums()),
        (
            pltpu.VMEM((tile.heads, tile.q, H), jnp.float32),
            pltpu.VMEM((tile.heads, tile.q, LANES), jnp.float32),
            pltpu.VMEM((tile.heads, tile.q, LANES), jnp.float32),
        ),
        2,
    )
    return out[:, :, :T], lse[:, :, 0, :T]


def _turn(x: jax.Array) -> jax.Array:
    return jnp.swapaxes(x, 1, 2)


def _too_many(data: Operands, static: Static, q: Any, k: Any, *sizes: tuple[int, int]) -> bool:
    """Whether the lists of steps of all rows of the batch exceed the scalar memory."""
    B, T, S = *q.shape[:2], k.shape[1]
    if B == 1 or all(x is None for x in data):
        return False
    moved = data.q_positions is not None or data.prefix is not None
    return any(B * _list_bytes(static.structure, moved, T, S, x) > STEPS_BYTES for x in sizes)


def _row_by_row(one: Callable[..., Any], *args: Any) -> Any:
    """A kernel for each row of the batch, in turn."""

    def alone(row):
        return jax.tree.map(lambda x: x[0], one(*jax.tree.map(lambda x: x[None], row)))

    return jax.lax.map(alone, args)


@dataclass(frozen=True)
class Flash:
    """Both passes with blocks of given sizes; None takes those of `blocks`."""

    sizes: Blocks | None = None

    def forward(
        self,
        q: Float[Array, "B T N H"],
        k: Float[Array, "B S K H"],
        v: Float[Array, "B S K H"],
        data: Operands,
        static: Static,
    ) -> tuple[Float[Array, "B T N H"], Float[Array, "B N T"]]:
        """The result and its lse."""
        sizes = self.sizes or blocks(q.shape[-1], q.dtype)
        if _too_many(data, static, q, k, sizes.forward):
            one = functools.partial(self.forward, static=static)
            return _row_by_row(one, q, k, v, data)
        q, k, v = _turn(q), _turn(k), _turn(v)
        call = self._call(by_queries, q, k, data, static, sizes.forward)
        out, lse = forward_of(call, q, k, v)
        return _turn(out), lse

    def backward(
        self,
        q: Float[Array, "B T N H"],
        k: Float[Array, "B S K H"],
        v: Float[Array, "B S K H"],
        data: Operands,
        static: Static,
        lse: Float[Array, "B N T"],
        delta: Float[Array, "B N T"],
        grad: Float[Array, "B T N H"],
    ) -> tuple[Float[Array, "B T N H"], Float[Array, "B S K H"], Float[Array, "B S K H"]]:
        """The gradients of q, k and v."""
        sizes = self.sizes or blocks(q.shape[-1], q.dtype)
        if _too_many(data, static, q, k, sizes.dq, sizes.dkv):

            def one(q, k, v, data, *sums):
                return self.backward(q, k, v, data, static, *sums)

            return _row_by_row(one, q, k, v, data, lse, delta, grad)
        q, k, v, grad = _turn(q), _turn(k), _turn(v), _turn(grad.astype(q.dtype))
        # A query that sees no key: exp(score - 1e30) is 0, as all its gradients are.
        lse = jnp.where(lse > -jnp.inf, lse, -HIDDEN_SCORE)
        dq = self._dq(q, k, v, data, static, lse, delta, grad, sizes.dq)
        dk, dv = self._dkv(q, k, v, data, static, lse, delta, grad, sizes.dkv)
        return _turn(dq), _turn(dk), _turn(dv)

    def _call(self, list_of, q, k, data, static, sizes):
        T, S = q.shape[2], k.shape[2]
        sizes = fit(T, sizes[0]), fit(S, sizes[1])
        return prepare(q, k, data, static, sizes, list_of(static.structure, data, T, S, *sizes))

    def _inputs(self, call, q, k, v, lse, delta, grad, by_keys):
        tile, H = call.tile, q.shape[-1]
        layout = Layout(tile, by_keys)
        inputs = (
            _grown(q, 2, tile.q),
            _grown(k, 2, tile.kv),
            _grown(v, 2, tile.kv),
            _grown(grad, 2, tile.q),
            _grown(lse * tile.unit, 2, tile.q, -HIDDEN_SCORE)[:, :, None],
            _grown(delta, 2, tile.q)[:, :, None],
        )
        queries, keys, sums = layout.queries(H), layout.keys(H), layout.sums()
        return inputs, (queries, keys, keys, queries, sums, sums)

    def _dq(self, q, k, v, data, static, lse, delta, grad, sizes):
        T, H = q.shape[2:]
        call = self._call(by_queries, q, k, data, static, sizes)
        tile = call.tile
        inputs, specs = self._inputs(call, q, k, v, lse, delta, grad, False)
        lanes = pltpu.VMEM((tile.heads, tile.q, LANES), jnp.float32)
        (dq,) = call(
            _dq_kernel,
            "flash_dq",
            False,
            inputs,
            specs,
            (jax.ShapeDtypeStruct(inputs[0].shape, q.dtype),),
            (specs[0],),
            (pltpu.VMEM((tile.heads, tile.q, H), jnp.float32), (lanes, lanes)),
            3,
        )
        return dq[:, :, :T]

    def _dkv(self, q, k, v, data, static, lse, delta, grad, sizes):
        S, H = k.shape[2:]
        call = self._call(by_keys, q, k, data, static, sizes)
        inputs, specs = self._inputs(call, q, k, v, lse, delta, grad, True)
        acc = pltpu.VMEM((call.tile.kv, H), jnp.float32)
        dk, dv = call(
            _dkv_kernel,
            "flash_dkv",
            True,
            inputs,
            specs,
            tuple(jax.ShapeDtypeStruct(inputs[1].shape, x.dtype) for x in (k, v)),
            (specs[1], specs[1]),
            (acc, acc),
            4,
        )
        return dk[:, :, :S], dv[:, :, :S]


def kernel(sizes: Blocks | None = None) -> Kernel:
    """The kernel with blocks of given sizes."""
    flash = Flash(sizes)
    return Kernel(flash.forward, flash.backward)


TPU = kernel()
