"""Flash attention for Hopper GPUs (H100, H200) in Pallas Mosaic GPU: wgmma fed by the copy engine.

A block of threads owns a tile of queries (in `_key_gradients`: of keys) and walks along the other
side in steps, over the blocks that `ways` names. How producer and consumers share memory stands
in `mosaic`. On a first reading go to `_forward_body`.

Everything here is in powers of two: p = exp2(scores * unit - lse2), for that is what the hardware
has, and the multiplication by log2(e) is part of `unit`.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu
from jaxtyping import Array, Float

from llama_jax.kernels import assembler
from llama_jax.kernels.attention.block_lists import Shown, nth, shown, ways
from llama_jax.kernels.attention.block_mask import Operands
from llama_jax.kernels.attention.flash import Kernel, Static
from llama_jax.kernels.attention.mosaic_gpu_parts import (
    MATRIX,
    ROWS,
    SIDES,
    Sizes,
    call,
    constant,
    indices,
    matrix,
    opaque,
    produce,
    products,
    release,
    ring,
    share_registers,
    spread,
    turned,
    vector,
    vectors,
)

LOG2E = math.log2(math.e)
# No score is below this, and exp2(LOWEST - LOWEST) is 1 where -inf - -inf would be NaN.
LOWEST = -1e30
HEAD_DIMS = (64, 128, 256)  # others are padded to the next of these
TYPES = (jnp.bfloat16, jnp.float16)
CHIPS = ("H100", "H200", "H800", "H20")  # a GH200 is one of them; their successors have no wgmma


# By head dim. Shared memory holds 227 KiB and a thread of two consumers 232 registers. A consumer
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
    if case.platform == "gpu" and not any(name in _device() for name in CHIPS):
        return f"wgmma is an instruction of Hopper GPUs, and the target is {_device()}"
    if case.platform == "gpu" and (reason := assembler.miscompiles()):
        return reason
    if case.bias:
        return "an additive bias is not read block by block"
    if mask.parts:
        return "keys are not summed in parts"
    if mask.allow is not None:
        return "allow, of the size of the scores, is not read block by block"
    return None


def _device() -> str:
    """What the GPU that code is traced for calls itself."""
    mesh = jax.sharding.get_abstract_mesh()
    device = None if mesh.empty else mesh.abstract_device
    return (jax.devices()[0] if device is None else device).device_kind


def _pad(x: Any, multiple: int, axis: int, fill: float = 0) -> Any:
    widths = [(0, 0)] * x.ndim
    widths[axis] = (0, -x.shape[axis] % multiple)
    return jnp.pad(x, widths, constant_values=fill) if widths[axis][1] else x


def _head_dim(H: int) -> int:
    return next(size for size in HEAD_DIMS if size >= H)


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
    queries = [spread(x, shape, q_axis) for x in q]
    keys = [spread(x, shape, 1 - q_axis) for x in kv]
    position = keys[0] if mask.positions else indices(shape, 1 - q_axis, start)
    seen = (position >= queries[0]) & (position < queries[1])
    return seen & (queries[2] == keys[-1]) if mask.segments else seen


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
    way = ways(static.structure, data, T, S, sizes.tile, sizes.step)
    names, arrays = _names(q=q, k=k, v=v, way=way, queries=mask.queries, keys=mask.keys)
    out, lse = call(
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
    memory = {
        "q_tile": matrix(sizes.consumers, ROWS, H, dtype=dtype),
        "k_ring": matrix(sizes.stages, sizes.step, H, dtype=dtype),
        "v_ring": matrix(sizes.stages, sizes.step, H, dtype=dtype),
        "lse_tile": plgpu.SMEM((sizes.consumers, ROWS), jnp.float32),
        "q_full": plgpu.Barrier(num_barriers=sizes.consumers),
        "k_bars": ring(sizes, 1 + (mask.kinds > 0)),
        "v_bars": ring(sizes, 1),
        "turns": plgpu.Barrier(num_arrivals=sizes.consumers),
    }
    if mask.kinds:
        memory["keys_ring"] = plgpu.SMEM((sizes.stages, mask.kinds, sizes.step), jnp.int32)
    return memory


def _forward_body(names, mask: Shown, sizes: Sizes, static: Static, H: int, G: int) -> Callable:
    shape = ROWS, sizes.step

    def body(
        *refs, q_tile, k_ring, v_ring, lse_tile, q_full, k_bars, v_bars, turns, keys_ring=None
    ):
        *inputs, out_ref, lse_ref = refs
        ref = dict(zip(names, inputs, strict=True))
        dtype = ref["q"].dtype
        group, head, batch = (lax.axis_index(name) for name in ("group", "head", "batch"))
        # Under a causal mask the last tiles have most to do, so they start first.
        tile = ref["way"].shape[1] - 1 - lax.axis_index("tile")
        row = batch if ref["way"].shape[0] > 1 else 0
        partly, steps = ref["way"][row, tile, 0], ref["way"][row, tile, 1]
        (k_full, k_free), (v_full, v_free) = k_bars, v_bars

        def block_of(n):
            return nth(ref["way"], row, tile, n)

        def slot_of(n):
            return lax.rem(n, jnp.int32(sizes.stages))

        def turn():
            """Both consumers meet here, so that one multiplies while the other takes exponents.

            Each comes twice a step, when its products are on their way and when its exponents are
            done. The second begins with an extra turn and the first ends with one.
            """
            if sizes.consumers == 2:
                plgpu.barrier_arrive(turns)
                plgpu.barrier_wait(turns)

        @pl.when(group < sizes.consumers)
        def _consumer():
            share_registers(sizes, consumer=True)
            here = pl.ds(tile * sizes.tile + group * ROWS, ROWS)
            plgpu.copy_gmem_to_smem(
                ref["q"].at[batch, here, head], q_tile.at[group], q_full.at[group]
            )
            queries = [
                vector(ref["queries"], (row, i, here), 0) for i in range(mask.queries.shape[1])
            ]
            plgpu.barrier_wait(q_full.at[group])

            def scores_of(n):
                plgpu.barrier_wait(k_full.at[slot_of(n)])
                return None, (q_tile.at[opaque(group, n, steps)], turned(k_ring.at[slot_of(n)]))

            def values_of(n, total, p):
                plgpu.barrier_wait(v_full.at[slot_of(n)])
                return total, (p, v_ring.at[slot_of(n)])

            def weighed(n, scores, total, top, weight, masked):
                x, unit, _ = _logits(scores, static)
                if masked:
                    keys = vectors(keys_ring, slot_of(n), mask.kinds)
                    first = block_of(n) * sizes.step
                    x = jnp.where(_seen(queries, keys, first, mask, shape, 0), x, -jnp.inf)
                release(k_free.at[slot_of(n)], masked and mask.kinds > 0)
                new = jnp.maximum(top, x.max(axis=1) * unit)
                p = jnp.exp2(x * unit - spread(new, shape, 0))
                fade = jnp.exp2(top - new)
                weight = weight * fade + p.sum(axis=1)
                total = total * spread(fade, (ROWS, H), 0)
                carry = lax.optimization_barrier((total, new, weight, p.astype(dtype)))
                turn()
                return carry

            def start(n, carry):
                total, top, weight, _ = carry
                (scores,) = products(scores_of(n), meanwhile=turn)
                # The arithmetic of a mask hides nothing of a block that is seen whole.
                return weighed(n, scores, total, top, weight, True)

            def step(n, carry, masked):
                total, top, weight, p = carry
                scores, total = products(scores_of(n), values_of(n - 1, total, p), meanwhile=turn)
                release(v_free.at[slot_of(n - 1)], False)
                return weighed(n, scores, total, top, weight, masked)

            def end(n, carry):
                total, top, weight, p = carry
                (total,) = products(values_of(n, total, p))
                release(v_free.at[slot_of(n)], False)
                return total, top, weight, p

            carry = (
                constant(0.0, (ROWS, H), MATRIX),
                constant(LOWEST, (ROWS,), SIDES[0]),
                constant(0.0, (ROWS,), SIDES[0]),
                constant(0.0, shape, MATRIX).astype(dtype),
            )
            # Scores of step n are multiplied beside the values of step n - 1, one wait for both.
            # Loops of one step or none stand for conditions.
            one, two = jnp.minimum(steps, 1), jnp.maximum(partly, 1)
            pl.when(group == 1)(turn)
            carry = lax.fori_loop(0, one, start, carry)
            carry = lax.fori_loop(1, two, lambda n, c: step(n, c, True), carry)
            carry = lax.fori_loop(two, jnp.maximum(steps, 1), lambda n, c: step(n, c, False), carry)
            carry = lax.fori_loop(steps - one, steps, end, carry)
            pl.when(group == 0)(turn)
            total, top, weight, _ = carry
            none = weight == 0.0
            share = 1.0 / jnp.where(none, 1.0, weight)
            # All products that read the tile of queries are done: it takes the results.
            q_tile[group] = (total * spread(share, (ROWS, H), 0)).astype(dtype)
            lse = top / LOG2E + jnp.log(jnp.where(none, 1.0, weight))
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
                    keys.append((ref["keys"].at[row, :, there], keys_ring.at[slot]))
                return keys, [(ref["v"].at[batch, there, kv_head], v_ring.at[slot])]

            produce(steps, sizes, (k_bars, v_bars), fill)

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
    wides = [_pad(x, wide, 3) for x in (q, k, v, grad.astype(q.dtype))]
    # A query that sees no key has lse = -inf, and exp2(scores - inf) = 0 says so without a NaN.
    lse2 = jnp.where(jnp.isfinite(lse), lse * LOG2E, jnp.inf)
    dq = _query_gradients(*wides, data=data, static=static, lse2=lse2, delta=delta)
    dk, dv = _key_gradients(*wides, data=data, static=static, lse2=lse2, delta=delta)
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
    way = ways(static.structure, data, T, S, sizes.tile, sizes.step)
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
    memory = {
        "q_tile": matrix(sizes.consumers, ROWS, H, dtype=q.dtype),
        "grad_tile": matrix(sizes.consumers, ROWS, H, dtype=q.dtype),
        "k_ring": matrix(sizes.stages, sizes.step, H, dtype=q.dtype),
        "v_ring": matrix(sizes.stages, sizes.step, H, dtype=q.dtype),
        "tile_full": plgpu.Barrier(num_arrivals=2, num_barriers=sizes.consumers),
        "bars": ring(sizes, 2 + (mask.kinds > 0)),
    }
    if mask.kinds:
        memory["keys_ring"] = plgpu.SMEM((sizes.stages, mask.kinds, sizes.step), jnp.int32)
    (dq,) = call(
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

    def body(*refs, q_tile, grad_tile, k_ring, v_ring, tile_full, bars, keys_ring: Any = None):
        *inputs, out_ref = refs
        ref = dict(zip(names, inputs, strict=True))
        dtype = ref["q"].dtype
        group, head, batch = (lax.axis_index(name) for name in ("group", "head", "batch"))
        tile = ref["way"].shape[1] - 1 - lax.axis_index("tile")
        row = batch if ref["way"].shape[0] > 1 else 0
        partly, steps = ref["way"][row, tile, 0], ref["way"][row, tile, 1]
        full, free = bars

        def block_of(n):
            return nth(ref["way"], row, tile, n)

        @pl.when(group < sizes.consumers)
        def _consumer():
            share_registers(sizes, consumer=True)
            here = pl.ds(tile * sizes.tile + group * ROWS, ROWS)
            for source, target in (("q", q_tile), ("grad", grad_tile)):
                plgpu.copy_gmem_to_smem(
                    ref[source].at[batch, here, head], target.at[group], tile_full.at[group]
                )
            queries = [
                vector(ref["queries"], (row, i, here), 0) for i in range(mask.queries.shape[1])
            ]
            lse2 = vector(ref["lse2"], (batch, head, here), 0)
            delta = vector(ref["delta"], (batch, head, here), 0)
            plgpu.barrier_wait(tile_full.at[group])

            def step(n, total, masked):
                slot = lax.rem(n, jnp.int32(sizes.stages))
                plgpu.barrier_wait(full.at[slot])
                mine = opaque(group, n, steps)
                scores, change = products(
                    (None, (q_tile.at[mine], turned(k_ring.at[slot]))),
                    (None, (grad_tile.at[mine], turned(v_ring.at[slot]))),
                )
                seen = None
                if masked:
                    keys = vectors(keys_ring, slot, mask.kinds)
                    seen = _seen(queries, keys, block_of(n) * sizes.step, mask, shape, 0)
                _, sloped = _probabilities(scores, spread(lse2, shape, 0), seen, static)
                ds = sloped * (change - spread(delta, shape, 0))
                (total,) = products((total, (ds.astype(dtype), k_ring.at[slot])))
                release(free.at[slot], masked and mask.kinds > 0)
                return total

            total = constant(0.0, (ROWS, H), MATRIX)
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
                    copies.append((ref["keys"].at[row, :, there], keys_ring.at[slot]))
                return (copies,)

            produce(steps, sizes, (bars,), fill)

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
    way = ways(static.structure, data, T, S, sizes.step, sizes.tile, by_keys=True)
    names, arrays = _names(
        q=q, k=k, v=v, grad=grad, stats=stats, way=way, queries=mask.queries, keys=mask.keys
    )
    kinds = mask.queries.shape[1]
    part = H // sizes.split
    tiles = sizes.tile // ROWS
    memory = {
        "k_tile": matrix(tiles, sizes.split, ROWS, part, dtype=q.dtype),
        "v_tile": matrix(tiles, sizes.split, ROWS, part, dtype=q.dtype),
        "q_ring": matrix(sizes.stages, sizes.split, sizes.step, part, dtype=q.dtype),
        "grad_ring": matrix(sizes.stages, sizes.split, sizes.step, part, dtype=q.dtype),
        "stats_ring": plgpu.SMEM((sizes.stages, 2, sizes.step), jnp.float32),
        "mask_ring": plgpu.SMEM((sizes.stages, kinds, sizes.step), jnp.int32),
        "tile_full": plgpu.Barrier(num_arrivals=2 * sizes.split, num_barriers=tiles),
        "bars": ring(sizes, 2 * sizes.split + 2),
        "turns": plgpu.Barrier(num_arrivals=sizes.consumers),
    }
    dk, dv = call(
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
            share_registers(sizes, consumer=True)
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

            keys = [vector(ref["keys"], (row, i, here), 0) for i in range(mask.kinds)]
            plgpu.barrier_wait(tile_full.at[mine])

            def step(n, carry, masked):
                dk, dv = carry
                slot = lax.rem(n, jnp.int32(sizes.stages))
                plgpu.barrier_wait(full.at[slot])
                # Indices in `products` are values of the kernel: a number would stay Python's.
                zero = group * 0
                parts = [zero + i for i in range(sizes.split)]
                rows, column = opaque(zero + mine, n, steps), zero + half
                scores, change = products(
                    (None, *((k_tile.at[rows, i], turned(q_ring.at[slot, i])) for i in parts)),
                    (None, *((v_tile.at[rows, i], turned(grad_ring.at[slot, i])) for i in parts)),
                )
                seen = None
                if masked:
                    queries = vectors(mask_ring, slot, mask.queries.shape[1])
                    seen = _seen(queries, keys, first, mask, shape, 1)
                lse2, delta = (spread(x, shape, 1) for x in vectors(stats_ring, slot, 2))
                p, sloped = _probabilities(scores, lse2, seen, static)
                ds = sloped * (change - delta)
                dv, dk = products(
                    (dv, (p.astype(dtype), grad_ring.at[slot, column])),
                    (dk, (ds.astype(dtype), q_ring.at[slot, column])),
                )
                release(free.at[slot], True)
                return dk, dv

            carry = constant(0.0, (ROWS, part), MATRIX), constant(0.0, (ROWS, part), MATRIX)
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
                there = pl.ds(nth(ref["way"], row, tile, block) * sizes.step, sizes.step)
                q_head = head * G + member
                copies = [
                    (ref[source].at[batch, there, q_head, part_of], ring.at[slot, i])
                    for source, ring in (("q", q_ring), ("grad", grad_ring))
                    for i, part_of in enumerate(columns)
                ]
                copies.append((ref["stats"].at[batch, q_head, :, there], stats_ring.at[slot]))
                copies.append((ref["queries"].at[row, :, there], mask_ring.at[slot]))
                return (copies,)

            produce(steps, sizes, (bars,), fill)

    return body


HOPPER = Kernel(forward, backward)
