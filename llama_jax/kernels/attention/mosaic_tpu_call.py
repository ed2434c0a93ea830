"""One run of a TPU kernel: the blocks of its operands, its grid, and what it is said to cost.

The grid is (row of the batch, group of query heads, step), or (row, key head, step, group) where
blocks of keys own the steps; `mosaic_tpu_steps` says what a step is.
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from llama_jax.kernels.attention.block_mask import Operands
from llama_jax.kernels.attention.flash import Static
from llama_jax.kernels.attention.mosaic_tpu_steps import Steps
from llama_jax.kernels.attention.mosaic_tpu_tile import LANES, Columns, Tile
from llama_jax.kernels.target import interpreting

MOST_HEADS = 8  # of queries in one step; more would need smaller blocks of queries
# A kernel gets 16 MiB of vector memory unless it asks: enough up to head dim 128. Generations since
# v5 have 64 to 128; what a kernel asks for, XLA cannot use to prefetch.
VMEM_BYTES = 32 * 1024 * 1024


@dataclass(frozen=True)
class Blocks:
    """Queries and keys of a block.

    Attributes:
      forward: in the first pass.
      dq: in the kernel for the gradient of queries.
      dkv: in the kernel for the gradients of keys and values, or for all three.
    """

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
                queries = tile.queries(now)
                return index(row, head * tile.groups + rest[0], head, queries, now.owner)
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
        more_vmem: int = 0, aliases: dict[int, int] | None = None,
    ) -> Any:  # fmt: skip
        """Runs it.

        Args:
          kernel: what a step does.
          name: what a profile calls it.
          by_keys: whether blocks of keys own the steps.
          inputs: operands, q and k first.
          in_specs: blocks of the operands.
          out_shape: results.
          out_specs: blocks of the results.
          scratch: vector memory that is kept from step to step.
          products: matrix products of a tile.
          more_vmem: bytes beyond VMEM_BYTES that it may use.
          aliases: inputs whose memory becomes that of a result, by their places.
        """
        tile, q, k = self.tile, inputs[0], inputs[1]
        B, N, _, H = q.shape
        layout = Layout(tile, by_keys)
        grid = (B, k.shape[1]) if by_keys else (B, N // tile.heads)
        groups = (tile.groups,) if by_keys else ()
        prefix = self.data.prefix
        data = self.data._replace(prefix=None)
        scores = B * N * self.steps.tiles * tile.q * tile.kv
        fetched = B * N // tile.heads * self.steps.tiles * 2 * H * k.dtype.itemsize
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
                vmem_limit_bytes=VMEM_BYTES + more_vmem,
            ),
            # With data, as if it hid nothing.
            cost_estimate=pl.CostEstimate(
                flops=2 * products * scores * H,
                transcendentals=scores,
                bytes_accessed=fetched
                + sum(x.size * x.dtype.itemsize for x in jax.tree.leaves((inputs, out_shape))),
            ),
            # Before the inputs come the steps and the prefix.
            input_output_aliases={2 + i: o for i, o in (aliases or {}).items()},
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


def grown(x: Any, axis: int, block: int, value: Any = 0) -> Any:
    """Padded to whole blocks."""
    if x is None or x.shape[axis] % block == 0:
        return x
    pad = [(0, 0)] * x.ndim
    pad[axis] = (0, -x.shape[axis] % block)
    return jnp.pad(x, pad, constant_values=value)


def prepare(
    q: Any,
    k: Any,
    data: Operands,
    static: Static,
    sizes: tuple[int, int],
    steps: Steps,
    part: slice | None = None,
) -> Call:
    """The tile, its steps and the mask's data for q [B, N, T, H] and k [B, K, S, H].

    `part` are the blocks of queries that the steps are of, if not all.
    """
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
        *(0, None) if part is None else (part.start, part.stop - part.start),
        steps.shift,
    )

    def flat(x, block):
        return None if x is None else grown(x, 1, block)[:, None]

    # Beyond the last key is nothing to read that matters, see `Tile.there`.
    padded = Operands(
        flat(data.q_positions, tile.q),
        flat(data.kv_positions, 1),
        flat(data.q_segments, tile.q),
        flat(data.kv_segments, 1),
        data.prefix,
        grown(data.allow, 1, tile.q),
    )  # pyright: ignore
    return Call(tile, steps, padded)
