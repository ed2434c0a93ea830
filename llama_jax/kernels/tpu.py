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
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array, Float

from llama_jax.kernels.blocks import HIDDEN, PARTLY, WHOLE, Operands, seen
from llama_jax.kernels.flash import Kernel, Static
from llama_jax.kernels.target import interpreting
from llama_jax.kernels.tpu_steps import Step, Steps, by_keys, by_queries, longest, unpack

LANES = 128
MOST_HEADS = 8  # of queries in one step; more would need smaller blocks of queries
# Stands for -inf, with which a row that has seen nothing yet would compute -inf - -inf.
HIDDEN_SCORE = -1e30
LOG2E, LN2 = math.log2(math.e), math.log(2.0)
# Of 1 MiB scalar memory on every generation since v4; the rest is the compiler's.
STEPS_BYTES = 512 * 1024
# All generations since v5 have 64 MiB or more of vector memory for a core; a kernel gets 16 unless
# it asks, and what it asks for XLA cannot use to prefetch.
VMEM_BYTES = 48 * 1024 * 1024
MOST_HEAD_DIM = 512


@dataclass(frozen=True)
class Blocks:
    """Queries and keys of a block, in each of the three kernels."""

    forward: tuple[int, int]
    dq: tuple[int, int]
    dkv: tuple[int, int]


def blocks(head_dim: int, dtype: Any) -> Blocks:
    """The block sizes for a head dim and a type.

    512 x 1024 scores in float32 are 2 MiB and one step's products take about as long as fetching
    the next keys ten times over; larger tiles spill, smaller ones pay the 0.3 microseconds that a
    step costs more often. The backward tiles hold two score matrices, float32 products (six passes
    through the matrix unit) keep their split operands, and wide heads larger accumulators.
    """
    if jnp.dtype(dtype).itemsize == 4 or head_dim > 256:
        return Blocks((256, 512), (256, 512), (256, 512))
    if head_dim > 128:
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
    sizes, mask = blocks(H, case.q.dtype), case.mask
    for block in (sizes.forward, sizes.dq, sizes.dkv):
        q, kv = fit(T, block[0]), fit(S, block[1])
        needed = 4 * longest(mask, T, S, q, kv)
        if needed > STEPS_BYTES:
            return f"{T} x {S} scores in blocks of {q} x {kv} need {needed} bytes of scalar memory"
    return None


class Tile(NamedTuple):
    """What is known of a tile of scores while tracing; hashable.

    Attributes:
      static: structure of the mask, scale, softcap.
      q: queries of a block.
      kv: keys of a block.
      T: queries, without padding.
      S: keys, without padding.
      heads: query heads of one step.
      groups: steps' worth of query heads that share a key head.
      exact: float32 inputs: exact products, and exp rather than 2**x.
      folded: heads that lie along both the rows and the columns (decoding), else 1.
      prefix: whether the mask has one.
      stride: between the steps of two rows of the batch.
      kinds: the codes that may occur.
    """

    static: Static
    q: int
    kv: int
    T: int
    S: int
    heads: int
    groups: int
    exact: bool
    folded: int
    prefix: bool
    stride: int
    kinds: frozenset[int]

    def step(self, packed: Any, row: Any, step: Any) -> Step:
        """A step of a row of the batch."""
        return unpack(packed[row * self.stride + step])

    @property
    def unit(self) -> float:
        """Scores are multiplied by it: 2**x is what the hardware computes."""
        return 1.0 if self.exact else LOG2E

    def exp(self, x: jax.Array) -> jax.Array:
        """Of scores times `unit`."""
        return jnp.exp(x) if self.exact else jnp.exp2(x)

    def dot(self, a: jax.Array, b: jax.Array, axes: tuple[int, int] = (1, 0)) -> jax.Array:
        """The product over the named axes, summed in float32."""
        return jax.lax.dot_general(
            a,
            b,
            (((axes[0],), (axes[1],)), ((), ())),
            precision=jax.lax.Precision.HIGHEST if self.exact else jax.lax.Precision.DEFAULT,
            preferred_element_type=jnp.float32,
        )

    def scores(self, a: jax.Array, b: jax.Array, shown: Any) -> tuple[jax.Array, Any]:
        """The scores of two blocks times `unit`, and their slope in the products (None for 1)."""
        x = self.dot(a, b, (1, 1))
        slope = None
        if self.static.softcap is None:
            x = x * (self.static.scale * self.unit)
        else:
            y = jnp.tanh(x * (self.static.scale / self.static.softcap))
            slope = 1.0 - y * y
            x = y * (self.static.softcap * self.unit)
        return (x if shown is None else jnp.where(shown, x, HIDDEN_SCORE)), slope

    def shown(self, step: Any, prefix: Any, data: Operands, columns: Any, by_keys: bool) -> Any:
        """What the mask shows of a tile; rows are the owner's. None if it shows all."""
        q_start, kv_start = step.owner * self.q, step.other * self.kv
        if by_keys:
            q_start, kv_start = step.other * self.q, step.owner * self.kv
        q_axis, kv_axis = (1, 0) if by_keys else (0, 1)
        q_index = q_start + _count(self.q, q_axis)
        kv_index = kv_start + _count(self.kv, kv_axis)
        q_positions, kv_positions = q_index, _over(kv_index, self.folded)

        def side(ref, column, owns, times=1):
            return column[:, :1] if owns else _repeat(ref[...], times)

        if data.q_positions is not None:
            q_positions = side(data.q_positions, columns.positions, not by_keys)
            kv_positions = side(data.kv_positions, columns.positions, by_keys, self.folded)
        q_segments = kv_segments = allow = None
        if data.q_segments is not None:
            q_segments = side(data.q_segments, columns.segments, not by_keys)
            kv_segments = side(data.kv_segments, columns.segments, by_keys, self.folded)
        if data.allow is not None:
            allow = data.allow[...].astype(jnp.float32)
            allow = allow.T if by_keys else allow
        shown = seen(
            self.static.structure,
            Operands(q_positions, None, q_segments, None, prefix, allow),
            Operands(None, kv_positions, None, kv_segments),
        )
        if self.S % self.kv:
            shown = _both(shown, kv_index < self.S)
        if self.folded > 1:
            head = _over(q_index, self.T // self.folded)
            key_head = kv_index - _over(kv_index, self.folded) * self.folded
            shown = _both(shown, head == key_head)
        return None if shown is None else jnp.broadcast_to(shown, self.shape(by_keys))

    def there(self, block: Any, keys: jax.Array) -> jax.Array:
        """The keys or values of a block, zeros beyond the last: what lies there may be NaN."""
        if self.S % self.kv == 0:
            return keys
        exists = block * self.kv + _count(self.kv, 0) < self.S
        # Selected as float32: not all generations select 16-bit numbers.
        return jnp.where(exists, keys.astype(jnp.float32), 0.0).astype(keys.dtype)

    def shape(self, by_keys: bool) -> tuple[int, int]:
        """Rows and columns of the scores."""
        return (self.kv, self.q) if by_keys else (self.q, self.kv)


class Columns(NamedTuple):
    """The owner's positions and segments, [rows, LANES], each lane the same."""

    positions: Any = None
    segments: Any = None


def _both(a: Any, b: Any) -> Any:
    return b if a is None else a & b


def _over(x: jax.Array, size: int) -> jax.Array:
    """x // size of numbers that are not negative; a shift where it can be."""
    return x >> (size.bit_length() - 1) if size & (size - 1) == 0 else x // size


def _count(size: int, axis: int) -> jax.Array:
    shape = (size, 1) if axis == 0 else (1, size)
    return jax.lax.broadcasted_iota(jnp.int32, shape, axis)


def _column(row: jax.Array) -> jax.Array:
    """[1, n] along the lanes to [n, LANES], each lane the same."""
    return jnp.broadcast_to(row, (LANES, row.shape[1])).T


def _row(column: jax.Array) -> jax.Array:
    """[n, LANES] to [1, n]."""
    return column.T[:1]


def _repeat(row: jax.Array, times: int) -> jax.Array:
    """[1, n] to [1, n * times], each entry as often, by moves of lanes within registers."""
    if times == 1 or row.shape[1] % LANES:
        return jnp.repeat(row, times, axis=1)
    parts = []
    for start in range(0, row.shape[1] * times, LANES):
        lane = (start + jax.lax.broadcasted_iota(jnp.int32, (8, LANES), 1)) // times
        first, last = start // times // LANES, (start + LANES - 1) // times // LANES
        part = _lanes(row, first, lane)
        if last != first:
            part = jnp.where(lane < last * LANES, part, _lanes(row, last, lane))
        parts.append(part[:1])
    return jnp.concatenate(parts, axis=1)


def _lanes(row: jax.Array, register: int, lane: jax.Array) -> jax.Array:
    """The named lanes of one register, anything for lanes of another."""
    source = jnp.broadcast_to(row[:, register * LANES : (register + 1) * LANES], lane.shape)
    inside = (lane - register * LANES) & (LANES - 1)
    return jnp.take_along_axis(source, inside, axis=1, mode="promise_in_bounds")


def _wide(column: jax.Array, width: int) -> jax.Array:
    """[n, LANES] to [n, width]: copies of registers, where a broadcast would move lanes."""
    return jnp.tile(column, (1, -(-width // LANES)))[:, :width]


def _each(count: int, body: Callable[[Any], None]) -> None:
    """body(0) ... body(count - 1)."""
    if count == 1:
        body(0)
        return

    # Two heads at once: one's products run beside the other's exponentials.
    def loop(i, _):
        body(i)
        return 0

    jax.lax.fori_loop(0, count, loop, 0, unroll=2 if count % 2 == 0 else 1)


def _visit(tile: Tile, step: Any, shown: Callable[[], Any], body: Callable[[Any], None]) -> None:
    """Runs the body with the mask in blocks seen in part, without it in blocks seen whole."""
    whole_too = tile.folded > 1  # other heads' columns are always hidden
    if PARTLY in tile.kinds or whole_too:

        @pl.when((step.code != HIDDEN) if whole_too else (step.code == PARTLY))
        def _():
            body(shown())

    if WHOLE in tile.kinds and not whole_too:

        @pl.when(step.code == WHOLE)
        def _():
            body(None)


def _fill(columns: Columns, data: Operands, by_keys: bool) -> None:
    if columns.positions is not None:
        columns.positions[...] = _column(
            (data.kv_positions if by_keys else data.q_positions)[...]  # pyright: ignore
        )
    if columns.segments is not None:
        columns.segments[...] = _column(
            (data.kv_segments if by_keys else data.q_segments)[...]  # pyright: ignore
        )


def _forward_kernel(tile: Tile, at, prefix, q, k, v, data, out, lse, acc, top, total, columns):
    row = pl.program_id(0)
    step = tile.step(at, row, pl.program_id(2))

    @pl.when(step.first)
    def _():
        acc[...] = jnp.zeros_like(acc)
        top[...] = jnp.full_like(top, HIDDEN_SCORE)
        total[...] = jnp.zeros_like(total)
        _fill(columns, data, by_keys=False)

    def shown():
        return tile.shown(step, prefix[row] if tile.prefix else None, data, columns, False)

    def body(shown):
        def head(h):
            scores, _ = tile.scores(q[h], k[...], shown)
            before = top[h]
            now = jnp.maximum(before, jnp.max(scores, axis=1, keepdims=True))
            # A row that has only hidden scores counts them as ones; the first one seen makes
            # `shrink` zero and forgets them, and if there is none the end does.
            p = tile.exp(scores - _wide(now, scores.shape[1]))
            shrink = tile.exp(before - now)
            top[h] = now
            total[h] = total[h] * shrink + jnp.sum(p, axis=1, keepdims=True)
            values = v[...] if shown is None else tile.there(step.other, v[...])
            acc[h] = acc[h] * _wide(shrink, acc.shape[2]) + tile.dot(p.astype(v.dtype), values)

        _each(tile.heads, head)

    _visit(tile, step, shown, body)

    @pl.when(step.last)
    def _():
        def head(h):
            any_seen = top[h] > HIDDEN_SCORE / 2
            # Hidden in a step of its own, an owner has total = 0.
            weight = jnp.where(any_seen, total[h], 1.0)
            inverse = jnp.where(any_seen, 1.0 / weight, 0.0)
            out[h] = (acc[h] * _wide(inverse, acc.shape[2])).astype(out.dtype)
            logs = jnp.log(weight) + top[h] * (1.0 / tile.unit)
            lse[h] = _row(jnp.where(any_seen, logs, -jnp.inf))

        _each(tile.heads, head)


def _dq_kernel(tile: Tile, at, prefix, q, k, v, grad, lse, delta, data, dq, acc, rows, columns):
    row = pl.program_id(0)
    step = tile.step(at, row, pl.program_id(2))
    lses, deltas = rows

    @pl.when(step.first)
    def _():
        acc[...] = jnp.zeros_like(acc)

        def head(h):
            lses[h] = _column(lse[h])
            deltas[h] = _column(delta[h])

        _each(tile.heads, head)
        _fill(columns, data, by_keys=False)

    def shown():
        return tile.shown(step, prefix[row] if tile.prefix else None, data, columns, False)

    def body(shown):
        def head(h):
            scores, slope = tile.scores(q[h], k[...], shown)
            p = tile.exp(scores - _wide(lses[h], tile.kv))
            ds = p * (tile.dot(grad[h], v[...], (1, 1)) - _wide(deltas[h], tile.kv))
            ds = ds if slope is None else ds * slope
            acc[h] += tile.dot(ds.astype(k.dtype), k[...])

        _each(tile.heads, head)

    _visit(tile, step, shown, body)

    @pl.when(step.last)
    def _():
        dq[...] = (acc[...] * tile.static.scale).astype(dq.dtype)


def _dkv_kernel(
    tile: Tile, at, prefix, q, k, v, grad, lse, delta, data, dk, dv, dk_acc, dv_acc,
    columns,
):  # fmt: skip
    row, group = pl.program_id(0), pl.program_id(3)
    step = tile.step(at, row, pl.program_id(2))

    @pl.when(step.first & (group == 0))
    def _():
        dk_acc[...] = jnp.zeros_like(dk_acc)
        dv_acc[...] = jnp.zeros_like(dv_acc)
        _fill(columns, data, by_keys=True)

    def shown():
        return tile.shown(step, prefix[row] if tile.prefix else None, data, columns, True)

    def body(shown):
        def head(h):
            scores, slope = tile.scores(k[...], q[h], shown)
            p = tile.exp(scores - lse[h])
            dv_acc[...] += tile.dot(p.astype(grad.dtype), grad[h])
            ds = p * (tile.dot(v[...], grad[h], (1, 1)) - delta[h])
            ds = ds if slope is None else ds * slope
            dk_acc[...] += tile.dot(ds.astype(q.dtype), q[h])

        _each(tile.heads, head)

    _visit(tile, step, shown, body)

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
        """Of [B, K, S, width]."""
        shape = (None, None, self.tile.kv, width)
        return self.spec(shape, lambda row, heads, head, q, kv: (row, head, kv, 0))

    def sums(self) -> pl.BlockSpec:
        """Of [B, N, 1, T]: one number a query, along the lanes."""
        shape = (None, self.tile.heads, 1, self.tile.q)
        return self.spec(shape, lambda row, heads, head, q, kv: (row, heads, 0, q))

    def operands(self, data: Operands) -> Operands:
        """Of positions and segments [B, 1, length], and allow [B, T, S]."""
        q, kv = self.tile.q, self.tile.kv // self.tile.folded
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
    q: Any, k: Any, data: Operands, static: Static, sizes: tuple[int, int], steps: Steps,
    folded: int = 1,
) -> Call:  # fmt: skip
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
        folded,
        has_prefix,
        steps.stride,
        steps.kinds,
    )

    def row(x, block):
        return None if x is None else _grown(x, 1, block)[:, None]

    # Beyond the last key is nothing to read that matters, see `Tile.there`.
    padded = Operands(
        row(data.q_positions, tile.q),
        row(data.kv_positions, 1),
        row(data.q_segments, tile.q),
        row(data.kv_segments, 1),
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
