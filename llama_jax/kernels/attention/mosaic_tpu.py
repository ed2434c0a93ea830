"""Flash attention for TPUs in Pallas (Mosaic), forward and backward.

The first kernel gives the result and its lse; those of the gradients are in `mosaic_tpu_backward`.
Each sums over the blocks that `mosaic_tpu_steps` lists. A tile of scores has the owner's entries in
its rows, so that what is summed for each owner stays a column:

    forward, dq        owner: queries   scores [q_block, kv_block]   sums over keys
    dk and dv, or all  owner: keys      scores [kv_block, q_block]   sums over queries

Up to 8 query heads that share a key head are handled in one step, so that a block of keys is
fetched once for all of them. What a row of the tile needs (positions, segments, lse) arrives along
the lanes and is turned into a column once per owner.

Sources: Dao 2023 (arXiv:2307.08691); equations in flash.py.
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array, Float

from llama_jax.kernels.attention.block_mask import Operands
from llama_jax.kernels.attention.flash import Kernel, Static
from llama_jax.kernels.attention.mask import Mask
from llama_jax.kernels.attention.mosaic_tpu_backward import Form, Given, form
from llama_jax.kernels.attention.mosaic_tpu_call import (
    Blocks,
    Call,
    Layout,
    blocks,
    fit,
    grown,
    prepare,
)
from llama_jax.kernels.attention.mosaic_tpu_steps import (
    MOST_OTHERS,
    STEPS_BYTES,
    by_queries,
    longest,
)
from llama_jax.kernels.attention.mosaic_tpu_tile import (
    HIDDEN_SCORE,
    LANES,
    Tile,
    each,
    fill,
    row,
    visit,
    wide,
)

MOST_HEAD_DIM = 256


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
        most = max(-(-T // fit(T, block[0])), -(-S // fit(S, block[1])))
        if most > MOST_OTHERS:
            return f"{T} x {S} scores are {most} blocks of {block} a side, more than {MOST_OTHERS}"
        if not jax.tree.leaves(mask):
            continue  # no list where it would be too long
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


def forward_of(call: Call, q: Any, k: Any, v: Any) -> tuple[jax.Array, jax.Array]:
    """The first pass, [B, N, T, H] and [B, N, T] of q [B, N, T, H], k and v [B, K, S, H]."""
    tile, (T, H) = call.tile, q.shape[2:]
    layout = Layout(tile, by_keys=False)
    q = grown(q, 2, tile.q)
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
    """Both passes.

    Attributes:
      sizes: queries and keys of a block; None takes what `blocks` says.
      form: how gradients are computed; None takes what `form` says.
    """

    sizes: Blocks | None = None
    form: Form | None = None

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
        T, S = q.shape[2], k.shape[2]
        fitted = fit(T, sizes.forward[0]), fit(S, sizes.forward[1])
        steps = by_queries(static.structure, data, T, S, *fitted)
        call = prepare(q, k, data, static, fitted, steps)
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
        moved = data.q_positions is not None or data.prefix is not None
        steps = _list_bytes(static.structure, moved, q.shape[2], k.shape[2], sizes.dkv)
        chosen = self.form or form(q, k, sizes, steps)
        given = Given(q, k, v, grad, lse, delta, data, static)
        dq, dk, dv = chosen.gradients(given, sizes)
        return _turn(dq), _turn(dk), _turn(dv)


def kernel(sizes: Blocks | None = None, form: Form | None = None) -> Kernel:
    """The kernel with blocks of given sizes and a given form of its gradients."""
    flash = Flash(sizes, form)
    return Kernel(flash.forward, flash.backward)


TPU = kernel()
