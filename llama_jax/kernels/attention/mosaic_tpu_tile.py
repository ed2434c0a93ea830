"""A tile of scores inside a TPU kernel: its products, its mask, and rows turned into columns."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl

from llama_jax.kernels.attention.block_mask import PARTLY, WHOLE, Operands, seen
from llama_jax.kernels.attention.flash import Static
from llama_jax.kernels.attention.mosaic_tpu_steps import Step, unpack

LANES = 128
# Stands for -inf, with which a row that has seen nothing yet would compute -inf - -inf.
HIDDEN_SCORE = -1e30
LOG2E = math.log2(math.e)


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
        q_positions, kv_positions = q_index, kv_index

        def side(ref, column, owns):
            return column[:, :1] if owns else ref[...]

        if data.q_positions is not None:
            q_positions = side(data.q_positions, columns.positions, not by_keys)
            kv_positions = side(data.kv_positions, columns.positions, by_keys)
        q_segments = kv_segments = allow = None
        if data.q_segments is not None:
            q_segments = side(data.q_segments, columns.segments, not by_keys)
            kv_segments = side(data.kv_segments, columns.segments, by_keys)
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

    def block_of_keys(self, row: Any, head: Any, block: Any, width: int) -> tuple[tuple, tuple]:
        """The shape of a block of keys or values in memory, and which of the blocks it is."""
        return (None, None, self.kv, width), (row, head, block, 0)


class Turned(Tile):
    """A tile whose keys and values come as [H, S]: a key in each lane (forward alone)."""

    __slots__ = ()

    def dot(self, a: jax.Array, b: jax.Array, axes: tuple[int, int] = (1, 0)) -> jax.Array:
        """The product with keys or values; their axis is named as if they were [S, H]."""
        return super().dot(a, b, (axes[0], 1 - axes[1]))

    def there(self, block: Any, keys: jax.Array) -> jax.Array:
        """See `Tile.there`."""
        if self.S % self.kv == 0:
            return keys
        exists = block * self.kv + _count(self.kv, 1) < self.S
        return jnp.where(exists, keys.astype(jnp.float32), 0.0).astype(keys.dtype)

    def block_of_keys(self, row: Any, head: Any, block: Any, width: int) -> tuple[tuple, tuple]:
        """See `Tile.block_of_keys`."""
        return (None, None, width, self.kv), (row, head, 0, block)


class Columns(NamedTuple):
    """The owner's positions and segments, [rows, LANES], each lane the same."""

    positions: Any = None
    segments: Any = None


def _both(a: Any, b: Any) -> Any:
    return b if a is None else a & b


def _count(size: int, axis: int) -> jax.Array:
    shape = (size, 1) if axis == 0 else (1, size)
    return jax.lax.broadcasted_iota(jnp.int32, shape, axis)


def column(row: jax.Array) -> jax.Array:
    """[1, n] along the lanes to [n, LANES], each lane the same."""
    return jnp.broadcast_to(row, (LANES, row.shape[1])).T


def row(column: jax.Array) -> jax.Array:
    """[n, LANES] to [1, n]."""
    return column.T[:1]


def wide(column: jax.Array, width: int) -> jax.Array:
    """[n, LANES] to [n, width]: copies of registers, where a broadcast would move lanes."""
    return jnp.tile(column, (1, -(-width // LANES)))[:, :width]


def each(count: int, body: Callable[[Any], None]) -> None:
    """body(0) ... body(count - 1)."""
    if count == 1:
        body(0)
        return

    # Two heads at once: one's products run beside the other's exponentials.
    def loop(i, _):
        body(i)
        return 0

    jax.lax.fori_loop(0, count, loop, 0, unroll=2 if count % 2 == 0 else 1)


def visit(tile: Tile, step: Any, shown: Callable[[], Any], body: Callable[[Any], None]) -> None:
    """Runs the body with the mask in blocks seen in part, without it in blocks seen whole."""
    if PARTLY in tile.kinds:

        @pl.when(step.code == PARTLY)
        def _():
            body(shown())

    if WHOLE in tile.kinds:

        @pl.when(step.code == WHOLE)
        def _():
            body(None)


def fill(columns: Columns, data: Operands, by_keys: bool) -> None:
    """Turns the owner's positions and segments into columns."""
    positions = data.kv_positions if by_keys else data.q_positions
    segments = data.kv_segments if by_keys else data.q_segments
    if positions is not None:
        columns.positions[...] = column(positions[...])
    if segments is not None:
        columns.segments[...] = column(segments[...])
