"""Flash attention for Hopper GPUs (H100, H200) in Pallas Mosaic GPU: wgmma fed by the copy engine.

A block of threads owns a tile of queries (in `_key_gradients`: of keys) and walks along the other
side. One of its warpgroups, the producer, only starts copies from global memory into a ring of
`stages` slots in shared memory; the others, the consumers, multiply what lies there (Shah et al.
2024, arXiv:2407.08608). On a first reading go to `_forward_body`.

Barriers. Every slot of a ring has a `full` barrier, on which its copies arrive, and a `free`
barrier, on which each consumer arrives once it has read the slot for the last time. Step n uses
slot n % stages. The producer waits for `free` before it fills a slot again, so a slot is never
overwritten while it is read, and no barrier is ever a whole phase ahead of one who waits for it:

    producer   fill 0   fill 1   free 0?  fill 0   free 1?  fill 1  ...  free 0?  free 1?
    consumer   full 0?  read, free 0   full 1?  read, free 1   full 0?  ...

Masks. All that causal, window, chunk and prefix say of one query is an interval of key positions,
`low <= position < high`; with the segments these are the only data that a kernel reads of a mask
(`Shown`). Which blocks a tile visits is a list made before the kernel runs (`visits`): first those
that are PARTLY seen, then the WHOLE ones, which skip all of that arithmetic; HIDDEN ones are not
on it. Without data in the mask the lists are constants.

Everything here is in powers of two: p = exp2(scores * unit - lse2), for that is what the hardware
has, and the multiplication by log2(e) is part of `unit`.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu
from jaxtyping import Array, Float

from llama_jax.kernels.blocks import HIDDEN, NOWHERE, PARTLY, WHOLE, Operands, codes
from llama_jax.kernels.flash import Kernel, Static
from llama_jax.kernels.mask import Mask
from llama_jax.kernels.target import interpreting

LOG2E = math.log2(math.e)
ROWS = 64  # of an accumulator of one warpgroup: wgmma is m64
FARTHEST = np.iinfo(np.int32).max  # the position of a key that does not exist
# No score is below this, and exp2(LOWEST - LOWEST) is 1 where -inf - -inf would be NaN.
LOWEST = -1e30
HEAD_DIMS = (64, 128, 256)  # others are padded to the next of these
TYPES = (jnp.bfloat16, jnp.float16)

# Layouts of a warpgroup's registers: a matrix as wgmma leaves it, and vectors along its sides.
MATRIX = plgpu.Layout.WGMMA
SIDES = MATRIX.reduce(1), MATRIX.reduce(0)


class Sizes(NamedTuple):
    """How a pass is cut up.

    Attributes:
      consumers: warpgroups that multiply.
      step: keys (in `_key_gradients` queries) that are multiplied at once.
      stages: slots of a ring.
      split: warpgroups that share the head dim of one tile's gradients.
    """

    consumers: int
    step: int
    stages: int
    split: int = 1

    @property
    def tile(self) -> int:
        """Queries (in `_key_gradients` keys) of a block of threads."""
        return ROWS * self.consumers // self.split


# By head dim. Shared memory holds 227 KiB and a thread of two consumers 240 registers. A consumer
# of head dim 128 keeps in registers: forward 64 results + 64 scores, query gradients 64 + 2 x 32,
# key gradients 2 x 64 + 2 x 32.
FORWARD = {64: Sizes(2, 128, 3), 128: Sizes(2, 128, 2), 256: Sizes(2, 64, 2)}
QUERIES = {64: Sizes(2, 128, 3), 128: Sizes(2, 64, 3), 256: Sizes(1, 64, 2)}
KEYS = {64: Sizes(2, 64, 3), 128: Sizes(2, 64, 3), 256: Sizes(2, 64, 2, split=2)}


def why_not(case: Any) -> str | None:
    """What these kernels cannot take of an `attention.Case`."""
    head_dim, dtype, mask = case.q.shape[3], case.q.dtype, case.mask
    if dtype not in TYPES:
        return f"wgmma multiplies bfloat16 and float16, not {jnp.dtype(dtype).name}"
    if head_dim > HEAD_DIMS[-1]:
        return f"head dim {head_dim} is more than {HEAD_DIMS[-1]}"
    if case.bias:
        return "an additive bias is not read block by block"
    if mask.parts:
        return "keys are not summed in parts"
    if mask.allow is not None:
        return "allow, of the size of the scores, is not read block by block"
    return None


# --- what is prepared before a kernel runs: plain arrays, testable anywhere


class Shown(NamedTuple):
    """A mask as the kernels read it. R is B, or 1 if the mask has no data.

    Attributes:
      queries: [R, 2 or 3, T]: low, high and, if any, the segment.
      keys: [R, 0 to 2, S]: the position, if it is not the index, and the segment, if any.
      positions: whether keys has positions.
      segments: whether both have segments.
    """

    queries: Any
    keys: Any
    positions: bool
    segments: bool


def shown(structure: Mask, data: Operands, T: int, S: int, t: int, s: int) -> Shown:
    """The intervals and segments of a mask of T x S, for t queries and s keys, some padded.

    Padded keys are seen by no query, and padded queries see no key.
    """
    xp: Any = np if all(x is None for x in data) else jnp
    q = np.arange(T, dtype=np.int32)[None] if data.q_positions is None else data.q_positions
    low, high = interval(structure, q, None if data.prefix is None else data.prefix[:, None])
    if data.kv_positions is None:
        high = xp.minimum(high, S)
    queries = [(low, 0), (high, np.iinfo(np.int32).min)]
    keys = []
    if data.kv_positions is not None:
        keys.append((data.kv_positions, FARTHEST))
    if data.q_segments is not None:
        queries.append((data.q_segments, 0))
        keys.append((data.kv_segments, NOWHERE))
    R = max((x.shape[0] for x, _ in queries + keys), default=1)

    def stacked(parts, length):
        if not parts:
            return None
        rows = [
            xp.pad(
                xp.broadcast_to(x, (R, x.shape[1])),
                ((0, 0), (0, length - x.shape[1])),
                constant_values=fill,
            )
            for x, fill in parts
        ]
        return xp.stack(rows, axis=1).astype(np.int32)

    return Shown(
        stacked(queries, t),
        stacked(keys, s),
        data.kv_positions is not None,
        data.q_segments is not None,
    )


def interval(structure: Mask, q: Any, prefix: Any = None) -> tuple[Any, Any]:
    """The key positions from low to high - 1 that a query at position q may see."""
    xp: Any = np if isinstance(q, np.ndarray) and prefix is None else jnp
    low, high = xp.full_like(q, np.iinfo(np.int32).min), xp.full_like(q, FARTHEST)
    if structure.causal:
        high = q + 1 if prefix is None else xp.maximum(q + 1, prefix)
    if structure.window is not None:
        low = xp.maximum(low, q - structure.window + 1)
        if not structure.causal or prefix is not None:
            high = xp.minimum(high, q + structure.window)
    if structure.chunk is not None:
        first = q // structure.chunk * structure.chunk
        low, high = xp.maximum(low, first), xp.minimum(high, first + structure.chunk)
    return low, high


def visits(code: Any, padded: bool) -> Any:
    """The blocks that each tile visits: [R, X, 2 + Y] from codes [R, X, Y].

    A row is: how many are PARTLY seen, how many are seen at all, then the blocks in that order.
    `padded`: the last block has keys that do not exist, so it is never WHOLE.
    """
    xp: Any = np if isinstance(code, np.ndarray) else jnp
    last = np.arange(code.shape[2]) == code.shape[2] - 1
    code = xp.where(padded & last & (code == WHOLE), PARTLY, code)
    partly, seen = (code == PARTLY).sum(axis=2), (code != HIDDEN).sum(axis=2)
    rank = xp.where(code == PARTLY, 0, xp.where(code == WHOLE, 1, 2))
    order = xp.argsort(rank, axis=2, stable=True) if xp is jnp else rank.argsort(2, kind="stable")
    counts = xp.stack([partly, seen], axis=2)
    return xp.concatenate([counts, order], axis=2).astype(np.int32)


def _pad(x: Any, multiple: int, axis: int, fill: float = 0) -> Any:
    widths = [(0, 0)] * x.ndim
    widths[axis] = (0, -x.shape[axis] % multiple)
    return jnp.pad(x, widths, constant_values=fill) if widths[axis][1] else x


def _head_dim(H: int) -> int:
    return next(size for size in HEAD_DIMS if size >= H)


# --- what the kernels are made of


def _matrix(*shape: int, dtype: Any) -> Any:
    """Shared memory of a matrix, in the order of bytes that wgmma and the copy engine agree on."""
    if interpreting():
        return plgpu.SMEM(shape, dtype)
    order = plgpu.TilingTransform((8, 64)), plgpu.SwizzleTransform(128)
    return plgpu.SMEM(shape, dtype, transforms=order)


def _vector(ref: Any, index: tuple, side: int) -> Any:
    """Loads a vector along one side of a matrix in registers, from shared or global memory."""
    if interpreting():
        return ref[index]
    # "Optimized" loads are those without bank conflicts, of which global memory knows nothing.
    return plgpu.load(ref, index, layout=SIDES[side], optimized=False)


def _full(value: float, shape: tuple[int, ...], layout: Any) -> Any:
    x = jnp.full(shape, value, jnp.float32)
    return x if interpreting() else plgpu.layout_cast(x, layout)


def _spread(x: Any, shape: tuple[int, int], axis: int) -> Any:
    return lax.broadcast_in_dim(x, shape, [axis])


def _index(shape: tuple[int, int], axis: int, start: Any) -> Any:
    x = lax.broadcasted_iota(jnp.int32, shape, axis)
    return (x if interpreting() else plgpu.layout_cast(x, MATRIX)) + start


def _products(
    pairs: Sequence[Sequence[tuple]], meanwhile: Callable[[], None] | None = None
) -> list:
    """a b' summed over the refs (a, b) of each entry, float32; all run side by side.

    `meanwhile` is called when they are on their way.
    """
    shapes = [(terms[0][0].shape[0], terms[0][1].shape[0]) for terms in pairs]
    if interpreting():  # it knows no sums in registers
        if meanwhile:
            meanwhile()
        return [
            sum(
                (_dot(a[...], b[...].T) for a, b in terms[1:]),
                _dot(terms[0][0][...], terms[0][1][...].T),
            )
            for terms in pairs
        ]

    def run(*sums):
        for out, terms in zip(sums, pairs, strict=True):
            for a, b in terms:
                plgpu.wgmma(out, a, plgpu.transpose_ref(b, (1, 0)))
        if meanwhile:
            meanwhile()
        return [out[...] for out in sums]

    return pl.run_scoped(run, *(plgpu.ACC(shape, jnp.float32) for shape in shapes))


def _plus_products(*sums: tuple) -> list:
    """Total + a b of each (total, a, b), a in registers and b a ref; all run side by side."""
    if interpreting():
        return [total + _dot(a, b[...]) for total, a, b in sums]

    def run(totals):
        for out, (_, a, b) in zip(totals, sums, strict=True):
            plgpu.wgmma(out, a, b)

    return pl.run_state(run)([plgpu.ACC.init(total) for total, _, _ in sums])


def _dot(a: Any, b: Any) -> Any:
    return jnp.dot(a.astype(jnp.float32), b.astype(jnp.float32))


def _opaque(index: Any) -> Any:
    """The index, of whose value in a loop the compiler knows nothing.

    The address of each part of a tile would else be computed before the loop and kept, two
    registers for each of up to 32 parts, which are those that spill.
    """
    return lax.optimization_barrier(index)


def _logits(scores: Any, static: Static) -> tuple[Any, float, Any]:
    """x and unit, so that exp2(x * unit) is exp(logits), and the tanh of a softcap or None."""
    scale, cap = static.scale, static.softcap
    if cap is not None:
        tanh = _tanh(scores * (scale / cap))
        return tanh, cap * LOG2E, tanh
    # The greatest x has the greatest logit only if unit is positive.
    return (scores, scale * LOG2E, None) if scale > 0 else (scores * (scale * LOG2E), 1.0, None)


def _tanh(x: Any) -> Any:
    # The hardware's tanh is good to 11 bits: at a softcap of 50 logits would be off by 0.02. A
    # reciprocal root, squared, takes the place of a division, for which there is no instruction.
    root = lax.rsqrt(1.0 + jnp.exp2(x * (2 * LOG2E)))
    return 1.0 - 2.0 * (root * root)


def _seen(q: Sequence, kv: Sequence, start: Any, mask: Shown, shape: tuple, q_axis: int) -> Any:
    """Which scores of a block are shown; vectors q (low, high, segment) and kv (as in Shown).

    `start` is the index of the block's first key.
    """
    queries = [_spread(x, shape, q_axis) for x in q]
    keys = [_spread(x, shape, 1 - q_axis) for x in kv]
    position = keys[0] if mask.positions else _index(shape, 1 - q_axis, start)
    seen = (position >= queries[0]) & (position < queries[1])
    return seen & (queries[2] == keys[-1]) if mask.segments else seen


def _ring(sizes: Sizes, copies: int) -> tuple[Any, Any]:
    """The barriers of a ring whose slots are filled by so many copies: full and free."""
    return (
        plgpu.Barrier(num_arrivals=copies, num_barriers=sizes.stages),
        plgpu.Barrier(num_arrivals=sizes.consumers, num_barriers=sizes.stages),
    )


def _produce(steps: Any, sizes: Sizes, rings: Sequence[tuple], fill: Callable) -> None:
    """The producer's walk; fill(n, slot) gives for each ring its copies, (source, target) refs."""
    plgpu.set_max_registers(24 if sizes.consumers == 2 else 40, action="decrease")

    @pl.loop(0, steps)
    def _step(n):
        slot = lax.rem(n, jnp.int32(sizes.stages))
        for (full, free), copies in zip(rings, fill(n, slot), strict=True):

            @pl.when(n >= sizes.stages)
            def _wait(free=free):
                plgpu.barrier_wait(free.at[slot])

            for source, target in copies:
                plgpu.copy_gmem_to_smem(source, target, full.at[slot])

    # Every slot that was filled has been freed once more than was waited for.
    for slot in range(sizes.stages):

        @pl.when(slot < steps)
        def _last(slot=slot):
            for _, free in rings:
                plgpu.barrier_wait(free.at[slot])


def _call(body: Callable, name: str, out: Any, grid: tuple, sizes: Sizes, scratch: dict) -> Any:
    """A kernel over a grid (heads, tiles, batch) with its consumers and one producer."""
    kwargs: dict[str, Any] = {}
    if interpreting():
        # jax has no public name for it yet.
        from jax._src.pallas.mosaic_gpu.interpret.params import InterpretGPUParams

        kwargs["interpret"] = InterpretGPUParams(detect_races=True)
    return plgpu.kernel(
        body,
        out_type=out,
        scratch_types=scratch,
        grid=grid,
        grid_names=("head", "tile", "batch"),
        num_threads=sizes.consumers + 1,
        thread_name="group",
        compiler_params=plgpu.CompilerParams(approx_math=True),
        kernel_name=name,
        **kwargs,
    )


def _names(**arrays: Any) -> tuple[tuple[str, ...], list]:
    """The names and the values of the arrays that there are."""
    there = {name: x for name, x in arrays.items() if x is not None}
    return tuple(there), list(there.values())


# --- the forward pass


def forward(
    q: Float[Array, "B T N H"],
    k: Float[Array, "B S K H"],
    v: Float[Array, "B S K H"],
    data: Operands,
    static: Static,
) -> tuple[Float[Array, "B T N H"], Float[Array, "B N T"]]:
    """Flash attention; see `flash.Forward`."""
    B, T, N, H = q.shape
    S = k.shape[1]
    wide = _head_dim(H)
    sizes = FORWARD[wide]
    q, k, v = (_pad(x, wide, 3) for x in (q, k, v))
    q, k, v = _pad(q, sizes.tile, 1), _pad(k, sizes.step, 1), _pad(v, sizes.step, 1)
    mask = shown(static.structure, data, T, S, q.shape[1], k.shape[1])
    way = visits(codes(static.structure, data, T, S, sizes.tile, sizes.step), k.shape[1] > S)
    names, arrays = _names(q=q, k=k, v=v, way=way, queries=mask.queries, keys=mask.keys)
    out, lse = _call(
        _forward_body(names, mask, sizes, static, wide, N // k.shape[2]),
        "flash_forward",
        (
            jax.ShapeDtypeStruct(q.shape, q.dtype),
            jax.ShapeDtypeStruct((B, N, q.shape[1]), jnp.float32),
        ),
        (N, q.shape[1] // sizes.tile, B),
        sizes,
        _forward_memory(mask, sizes, wide, q.dtype),
    )(*arrays)
    return out[:, :T, :, :H], lse[:, :, :T]


def _forward_memory(mask: Shown, sizes: Sizes, H: int, dtype: Any) -> dict:
    kinds = 0 if mask.keys is None else mask.keys.shape[1]
    memory = {
        "q_tile": _matrix(sizes.consumers, ROWS, H, dtype=dtype),
        "k_ring": _matrix(sizes.stages, sizes.step, H, dtype=dtype),
        "v_ring": _matrix(sizes.stages, sizes.step, H, dtype=dtype),
        "lse_tile": plgpu.SMEM((sizes.consumers, ROWS), jnp.float32),
        "q_full": plgpu.Barrier(num_barriers=sizes.consumers),
        "k_bars": _ring(sizes, 1 + (kinds > 0)),
        "v_bars": _ring(sizes, 1),
        "turns": plgpu.Barrier(num_arrivals=sizes.consumers),
    }
    if kinds:
        memory["keys_ring"] = plgpu.SMEM((sizes.stages, kinds, sizes.step), jnp.int32)
    return memory


def _forward_body(names, mask: Shown, sizes: Sizes, static: Static, H: int, G: int) -> Callable:
    shape = ROWS, sizes.step

    def body(
        *refs, q_tile, k_ring, v_ring, lse_tile, q_full, k_bars, v_bars, turns, keys_ring=None
    ):
        *inputs, out_ref, lse_ref = refs
        ref = dict(zip(names, inputs, strict=True))
        group, head, batch = (lax.axis_index(name) for name in ("group", "head", "batch"))
        # Under a causal mask the last tiles have most to do, so they start first.
        tile = ref["way"].shape[1] - 1 - lax.axis_index("tile")
        row = batch if ref["way"].shape[0] > 1 else 0
        partly, steps = ref["way"][row, tile, 0], ref["way"][row, tile, 1]
        (k_full, k_free), (v_full, v_free) = k_bars, v_bars

        def block_of(n):
            return ref["way"][row, tile, 2 + n]

        def turn():
            """Both consumers meet here, so that one multiplies while the other takes exponents.

            The second begins with an extra turn and the first ends with one: after the first's
            n-th product of scores comes the second's (n - 1)-th of values, and so on.
            """
            if sizes.consumers == 2:
                plgpu.barrier_arrive(turns)
                plgpu.barrier_wait(turns)

        @pl.when(group < sizes.consumers)
        def _consumer():
            plgpu.set_max_registers(240, action="increase")
            start = tile * sizes.tile + group * ROWS
            here = pl.ds(start, ROWS)
            plgpu.copy_gmem_to_smem(
                ref["q"].at[batch, here, head], q_tile.at[group], q_full.at[group]
            )
            mask_row = batch if mask.queries.shape[0] > 1 else 0
            queries = [
                _vector(ref["queries"], (mask_row, i, here), 0)
                for i in range(mask.queries.shape[1])
            ]
            plgpu.barrier_wait(q_full.at[group])

            def step(n, carry, masked):
                total, top, weight = carry
                slot = lax.rem(n, jnp.int32(sizes.stages))
                plgpu.barrier_wait(k_full.at[slot])
                (scores,) = _products([[(q_tile.at[_opaque(group)], k_ring.at[slot])]], turn)
                x, unit, _ = _logits(scores, static)
                if masked:
                    kinds = 0 if mask.keys is None else mask.keys.shape[1]
                    keys = [_vector(keys_ring.at[slot], (i,), 1) for i in range(kinds)]
                    first = block_of(n) * sizes.step
                    x = jnp.where(_seen(queries, keys, first, mask, shape, 0), x, -jnp.inf)
                plgpu.barrier_arrive(k_free.at[slot])
                new = jnp.maximum(top, x.max(axis=1) * unit)
                p = jnp.exp2(x * unit - _spread(new, shape, 0))
                fade = jnp.exp2(top - new)
                weight = weight * fade + p.sum(axis=1)
                total = total * _spread(fade, (ROWS, H), 0)
                p = p.astype(ref["q"].dtype)
                total, new, weight, p = lax.optimization_barrier((total, new, weight, p))
                turn()
                plgpu.barrier_wait(v_full.at[slot])
                (total,) = _plus_products((total, p, v_ring.at[slot]))
                plgpu.barrier_arrive(v_free.at[slot])
                return total, new, weight

            carry = (
                _full(0.0, (ROWS, H), MATRIX),
                _full(LOWEST, (ROWS,), SIDES[0]),
                _full(0.0, (ROWS,), SIDES[0]),
            )
            pl.when(group == 1)(turn)
            carry = lax.fori_loop(0, partly, lambda n, c: step(n, c, True), carry)
            carry = lax.fori_loop(partly, steps, lambda n, c: step(n, c, False), carry)
            pl.when(group == 0)(turn)
            total, top, weight = carry
            none = weight == 0.0
            share = 1.0 / jnp.where(none, 1.0, weight)
            # All products that read the tile of queries are done: it takes the results.
            q_tile[group] = (total * _spread(share, (ROWS, H), 0)).astype(ref["q"].dtype)
            lse = (top + jnp.log(jnp.where(none, 1.0, weight)) * LOG2E) / LOG2E
            lse_tile[group] = jnp.where(none, -jnp.inf, lse)
            plgpu.commit_smem()
            plgpu.copy_smem_to_gmem(q_tile.at[group], out_ref.at[batch, here, head])
            plgpu.copy_smem_to_gmem(lse_tile.at[group], lse_ref.at[batch, head, here])
            plgpu.wait_smem_to_gmem(0)

        @pl.when(group == sizes.consumers)
        def _producer():
            kv_head = lax.div(head, jnp.int32(G))

            def fill(n, slot):
                there = pl.ds(block_of(n) * sizes.step, sizes.step)
                keys = [(ref["k"].at[batch, there, kv_head], k_ring.at[slot])]
                if keys_ring is not None:
                    mask_row = batch if ref["keys"].shape[0] > 1 else 0
                    keys.append((ref["keys"].at[mask_row, :, there], keys_ring.at[slot]))
                return keys, [(ref["v"].at[batch, there, kv_head], v_ring.at[slot])]

            _produce(steps, sizes, (k_bars, v_bars), fill)

    return body


# --- the backward pass: one kernel walks over keys for dq, one over queries for dk and dv


def backward(
    q: Float[Array, "B T N H"],
    k: Float[Array, "B S K H"],
    v: Float[Array, "B S K H"],
    data: Operands,
    static: Static,
    lse: Float[Array, "B N T"],
    delta: Float[Array, "B N T"],
    grad: Float[Array, "B T N H"],
) -> tuple[Float[Array, "B T N H"], Float[Array, "B S K H"], Float[Array, "B S K H"]]:
    """The gradients of q, k and v; see `flash.Backward`."""
    wide = _head_dim(q.shape[3])
    wides = (_pad(x, wide, 3) for x in (q, k, v, grad.astype(q.dtype)))
    # A query that sees no key has lse = -inf, and exp2(scores - inf) = 0 says so without a NaN.
    lse2 = jnp.where(jnp.isfinite(lse), lse * LOG2E, jnp.inf)
    args = *wides, data, static, lse2, delta
    dq = _query_gradients(*args)
    dk, dv = _key_gradients(*args)
    H = q.shape[3]
    return dq[..., :H], dk[..., :H], dv[..., :H]


def _query_gradients(q, k, v, grad, data: Operands, static: Static, lse2, delta):
    B, T, N, H = q.shape
    S = k.shape[1]
    sizes = QUERIES[H]
    q, grad = _pad(q, sizes.tile, 1), _pad(grad, sizes.tile, 1)
    k, v = _pad(k, sizes.step, 1), _pad(v, sizes.step, 1)
    lse2, delta = _pad(lse2, sizes.tile, 2, jnp.inf), _pad(delta, sizes.tile, 2)
    mask = shown(static.structure, data, T, S, q.shape[1], k.shape[1])
    way = visits(codes(static.structure, data, T, S, sizes.tile, sizes.step), k.shape[1] > S)
    names, arrays = _names(
        q=q,
        k=k,
        v=v,
        grad=grad,
        lse2=lse2,
        delta=delta,
        way=way,
        queries=mask.queries,
        keys=mask.keys,
    )
    kinds = 0 if mask.keys is None else mask.keys.shape[1]
    memory = {
        "q_tile": _matrix(sizes.consumers, ROWS, H, dtype=q.dtype),
        "grad_tile": _matrix(sizes.consumers, ROWS, H, dtype=q.dtype),
        "k_ring": _matrix(sizes.stages, sizes.step, H, dtype=q.dtype),
        "v_ring": _matrix(sizes.stages, sizes.step, H, dtype=q.dtype),
        "tile_full": plgpu.Barrier(num_arrivals=2, num_barriers=sizes.consumers),
        "bars": _ring(sizes, 2 + (kinds > 0)),
    }
    if kinds:
        memory["keys_ring"] = plgpu.SMEM((sizes.stages, kinds, sizes.step), jnp.int32)
    (dq,) = _call(
        _query_body(names, mask, sizes, static, H, N // k.shape[2]),
        "flash_query_gradients",
        (jax.ShapeDtypeStruct(q.shape, q.dtype),),
        (N, q.shape[1] // sizes.tile, B),
        sizes,
        memory,
    )(*arrays)
    return dq[:, :T]


def _query_body(names, mask: Shown, sizes: Sizes, static: Static, H: int, G: int) -> Callable:
    shape = ROWS, sizes.step

    def body(*refs, q_tile, grad_tile, k_ring, v_ring, tile_full, bars, keys_ring=None):
        *inputs, out_ref = refs
        ref = dict(zip(names, inputs, strict=True))
        dtype = ref["q"].dtype
        group, head, batch = (lax.axis_index(name) for name in ("group", "head", "batch"))
        tile = ref["way"].shape[1] - 1 - lax.axis_index("tile")
        row = batch if ref["way"].shape[0] > 1 else 0
        partly, steps = ref["way"][row, tile, 0], ref["way"][row, tile, 1]
        full, free = bars

        def block_of(n):
            return ref["way"][row, tile, 2 + n]

        @pl.when(group < sizes.consumers)
        def _consumer():
            plgpu.set_max_registers(240, action="increase")
            here = pl.ds(tile * sizes.tile + group * ROWS, ROWS)
            for source, target in (("q", q_tile), ("grad", grad_tile)):
                plgpu.copy_gmem_to_smem(
                    ref[source].at[batch, here, head], target.at[group], tile_full.at[group]
                )
            mask_row = batch if mask.queries.shape[0] > 1 else 0
            queries = [
                _vector(ref["queries"], (mask_row, i, here), 0)
                for i in range(mask.queries.shape[1])
            ]
            lse2 = _vector(ref["lse2"], (batch, head, here), 0)
            delta = _vector(ref["delta"], (batch, head, here), 0)
            plgpu.barrier_wait(tile_full.at[group])

            def step(n, total, masked):
                slot = lax.rem(n, jnp.int32(sizes.stages))
                plgpu.barrier_wait(full.at[slot])
                mine = _opaque(group)
                scores, change = _products(
                    [
                        [(q_tile.at[mine], k_ring.at[slot])],
                        [(grad_tile.at[mine], v_ring.at[slot])],
                    ]
                )
                seen = None
                if masked:
                    kinds = 0 if mask.keys is None else mask.keys.shape[1]
                    keys = [_vector(keys_ring.at[slot], (i,), 1) for i in range(kinds)]
                    seen = _seen(queries, keys, block_of(n) * sizes.step, mask, shape, 0)
                _, sloped = _probabilities(scores, _spread(lse2, shape, 0), seen, static)
                ds = sloped * (change - _spread(delta, shape, 0))
                (total,) = _plus_products((total, ds.astype(dtype), k_ring.at[slot]))
                plgpu.barrier_arrive(free.at[slot])
                return total

            total = _full(0.0, (ROWS, H), MATRIX)
            total = lax.fori_loop(0, partly, lambda n, c: step(n, c, True), total)
            total = lax.fori_loop(partly, steps, lambda n, c: step(n, c, False), total)
            # All products that read the tile of queries are done: it takes the results.
            q_tile[group] = (total * static.scale).astype(dtype)
            plgpu.commit_smem()
            plgpu.copy_smem_to_gmem(q_tile.at[group], out_ref.at[batch, here, head])
            plgpu.wait_smem_to_gmem(0)

        @pl.when(group == sizes.consumers)
        def _producer():
            kv_head = lax.div(head, jnp.int32(G))

            def fill(n, slot):
                there = pl.ds(block_of(n) * sizes.step, sizes.step)
                copies = [
                    (ref["k"].at[batch, there, kv_head], k_ring.at[slot]),
                    (ref["v"].at[batch, there, kv_head], v_ring.at[slot]),
                ]
                if keys_ring is not None:
                    mask_row = batch if ref["keys"].shape[0] > 1 else 0
                    copies.append((ref["keys"].at[mask_row, :, there], keys_ring.at[slot]))
                return (copies,)

            _produce(steps, sizes, (bars,), fill)

    return body


def _probabilities(scores: Any, lse2: Any, seen: Any, static: Static) -> tuple[Any, Any]:
    """p, and p times the slope of the softcap."""
    x, unit, tanh = _logits(scores, static)
    p = jnp.exp2(x * unit - lse2)
    if seen is not None:
        # A hidden score may be above lse: its exponent overflows, and is not used.
        p = jnp.where(seen, p, 0.0)
    return p, p if tanh is None else p * (1.0 - tanh * tanh)


def _key_gradients(q, k, v, grad, data: Operands, static: Static, lse2, delta):
    """dk and dv; all is transposed, keys in rows, so that p' comes out where wgmma wants it."""
    B, T, N, H = q.shape
    S, K = k.shape[1:3]
    sizes = KEYS[H]
    q, grad = _pad(q, sizes.step, 1), _pad(grad, sizes.step, 1)
    k, v = _pad(k, sizes.tile, 1), _pad(v, sizes.tile, 1)
    stats = jnp.stack(
        [_pad(lse2, sizes.step, 2, jnp.inf), _pad(delta, sizes.step, 2)], axis=2
    )  # [B, N, 2, T]
    mask = shown(static.structure, data, T, S, q.shape[1], k.shape[1])
    code = codes(static.structure, data, T, S, sizes.step, sizes.tile).swapaxes(1, 2)
    # Padded keys need no mask here: they have rows of their own, which are cut off.
    way = visits(code, False)
    names, arrays = _names(
        q=q, k=k, v=v, grad=grad, stats=stats, way=way, queries=mask.queries, keys=mask.keys
    )
    kinds = mask.queries.shape[1]
    part = H // sizes.split
    tiles = sizes.tile // ROWS
    memory = {
        "k_tile": _matrix(tiles, sizes.split, ROWS, part, dtype=q.dtype),
        "v_tile": _matrix(tiles, sizes.split, ROWS, part, dtype=q.dtype),
        "q_ring": _matrix(sizes.stages, sizes.split, sizes.step, part, dtype=q.dtype),
        "grad_ring": _matrix(sizes.stages, sizes.split, sizes.step, part, dtype=q.dtype),
        "stats_ring": plgpu.SMEM((sizes.stages, 2, sizes.step), jnp.float32),
        "mask_ring": plgpu.SMEM((sizes.stages, kinds, sizes.step), jnp.int32),
        "tile_full": plgpu.Barrier(num_arrivals=2 * sizes.split, num_barriers=tiles),
        "bars": _ring(sizes, 2 * sizes.split + 2),
        "turns": plgpu.Barrier(num_arrivals=sizes.consumers),
    }
    dk, dv = _call(
        _key_body(names, mask, sizes, static, part, N // K),
        "flash_key_gradients",
        (jax.ShapeDtypeStruct(k.shape, k.dtype), jax.ShapeDtypeStruct(v.shape, v.dtype)),
        (K, k.shape[1] // sizes.tile, B),
        sizes,
        memory,
    )(*arrays)
    return dk[:, :S], dv[:, :S]


def _key_body(names, mask: Shown, sizes: Sizes, static: Static, part: int, G: int) -> Callable:
    """A step is one query head of the G of this key head, and one block of queries.

    With split = 2 both consumers compute the same scores, for the gradients of 64 keys of head dim
    256 do not fit into one's registers, and each sums its half of the columns.
    """
    shape = ROWS, sizes.step
    columns = [pl.ds(i * part, part) for i in range(sizes.split)]

    def body(
        *refs, k_tile, v_tile, q_ring, grad_ring, stats_ring, mask_ring, tile_full, bars, turns
    ):
        *inputs, dk_ref, dv_ref = refs
        ref = dict(zip(names, inputs, strict=True))
        dtype = ref["q"].dtype
        group, head, batch = (lax.axis_index(name) for name in ("group", "head", "batch"))
        tile = lax.axis_index("tile")  # under a causal mask the first ones have most to do
        row = batch if ref["way"].shape[0] > 1 else 0
        partly, steps = ref["way"][row, tile, 0] * G, ref["way"][row, tile, 1] * G
        full, free = bars

        @pl.when(group < sizes.consumers)
        def _consumer():
            plgpu.set_max_registers(240, action="increase")
            mine, half = (group, 0) if sizes.split == 1 else (0, group)
            first = tile * sizes.tile + mine * ROWS
            here = pl.ds(first, ROWS)

            @pl.when(half == 0)
            def _load():
                for source, target in (("k", k_tile), ("v", v_tile)):
                    for i, part_of in enumerate(columns):
                        plgpu.copy_gmem_to_smem(
                            ref[source].at[batch, here, head, part_of],
                            target.at[mine, i],
                            tile_full.at[mine],
                        )

            keys = []
            if mask.keys is not None:
                mask_row = batch if mask.keys.shape[0] > 1 else 0
                keys = [
                    _vector(ref["keys"], (mask_row, i, here), 0) for i in range(mask.keys.shape[1])
                ]
            plgpu.barrier_wait(tile_full.at[mine])

            def step(n, carry, masked):
                dk, dv = carry
                slot = lax.rem(n, jnp.int32(sizes.stages))
                plgpu.barrier_wait(full.at[slot])
                parts = range(sizes.split)
                rows = _opaque(jnp.int32(mine))
                scores, change = _products(
                    [
                        [(k_tile.at[rows, i], q_ring.at[slot, i]) for i in parts],
                        [(v_tile.at[rows, i], grad_ring.at[slot, i]) for i in parts],
                    ]
                )
                seen = None
                if masked:
                    queries = [
                        _vector(mask_ring.at[slot], (i,), 1) for i in range(mask.queries.shape[1])
                    ]
                    seen = _seen(queries, keys, first, mask, shape, 1)
                lse2 = _spread(_vector(stats_ring.at[slot], (0,), 1), shape, 1)
                p, sloped = _probabilities(scores, lse2, seen, static)
                delta = _spread(_vector(stats_ring.at[slot], (1,), 1), shape, 1)
                ds = sloped * (change - delta)
                dv, dk = _plus_products(
                    (dv, p.astype(dtype), grad_ring.at[slot, half]),
                    (dk, ds.astype(dtype), q_ring.at[slot, half]),
                )
                plgpu.barrier_arrive(free.at[slot])
                return dk, dv

            carry = _full(0.0, (ROWS, part), MATRIX), _full(0.0, (ROWS, part), MATRIX)
            carry = lax.fori_loop(0, partly, lambda n, c: step(n, c, True), carry)
            dk, dv = lax.fori_loop(partly, steps, lambda n, c: step(n, c, False), carry)
            if sizes.split > 1:
                # Each writes its half of the tiles, from which the other may still be reading.
                plgpu.barrier_arrive(turns)
                plgpu.barrier_wait(turns)
            k_tile[mine, half] = (dk * static.scale).astype(dtype)
            v_tile[mine, half] = dv.astype(dtype)
            plgpu.commit_smem()
            for source, target in ((k_tile, dk_ref), (v_tile, dv_ref)):
                plgpu.copy_smem_to_gmem(
                    source.at[mine, half],
                    target.at[batch, here, head, pl.ds(half * part, part)],
                )
            plgpu.wait_smem_to_gmem(0)

        @pl.when(group == sizes.consumers)
        def _producer():
            def fill(n, slot):
                block, member = lax.div(n, jnp.int32(G)), lax.rem(n, jnp.int32(G))
                there = pl.ds(ref["way"][row, tile, 2 + block] * sizes.step, sizes.step)
                q_head = head * G + member
                mask_row = batch if ref["queries"].shape[0] > 1 else 0
                copies = [
                    (ref[source].at[batch, there, q_head, part_of], ring.at[slot, i])
                    for source, ring in (("q", q_ring), ("grad", grad_ring))
                    for i, part_of in enumerate(columns)
                ]
                copies.append((ref["stats"].at[batch, q_head, :, there], stats_ring.at[slot]))
                copies.append((ref["queries"].at[mask_row, :, there], mask_ring.at[slot]))
                return (copies,)

            _produce(steps, sizes, (bars,), fill)

    return body


HOPPER = Kernel(forward, backward)
