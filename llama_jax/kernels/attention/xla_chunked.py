"""Attention in plain XLA, some queries at a time: memory grows with the length, not its square.

Blocks of queries form a few groups; each group reads only the keys that the mask's structure can
show it, known while tracing:

    queries  x . . .        x: computed, .: hidden from the whole group by the structure
             x x . .
             x x x .
             x x x x  keys
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from llama_jax.kernels.attention.block_mask import HIDDEN, Operands, codes, seen
from llama_jax.kernels.attention.flash import Kernel, Static

# Queries handled at once, at most: 256 x 8192 float32 scores of one head are 8 MB.
ROWS = 256
# Products of fewer cost more than the scores that they save: on a CPU 512 queries take 36 ms in
# four blocks and 44 in eight, forward and back (4 rows, 6 heads of 64).
LEAST = 128
# Of queries that read different keys. With 8, a causal mask costs 9/16 of the scores; half of them
# are needed, and each group is compiled apart.
GROUPS = 8
GRAIN = 128  # keys: the bounds of a group are multiples of it


class Group(NamedTuple):
    """Queries start ... start + rows * blocks - 1, which see no key outside first ... last - 1."""

    start: int
    rows: int
    blocks: int
    first: int
    last: int


def groups(static: Static, data: Operands, T: int, S: int) -> list[Group]:
    """How T queries are cut up; the last block may reach beyond T."""
    rows = min(ROWS, max(LEAST, -(-T // GROUPS)), -(-T // 16) * 16)
    blocks = -(-T // rows)
    code = codes(static.structure, data, T, S, rows, GRAIN)
    if not isinstance(code, np.ndarray):
        code = codes(static.structure, Operands(), T, S, rows, GRAIN)
        if data.q_positions is not None or data.prefix is not None:
            code = np.ones_like(code)
    found = []
    each = -(-blocks // GROUPS)
    for block in range(0, blocks, each):
        count = min(each, blocks - block)
        shown = np.flatnonzero((code[0, block : block + count] != HIDDEN).any(axis=0))
        first, last = (shown[0] * GRAIN, (shown[-1] + 1) * GRAIN) if len(shown) else (0, GRAIN)
        found.append(Group(block * rows, rows, count, int(first), min(int(last), S)))
    return found


def forward(
    q: Float[Array, "B T N H"],
    k: Float[Array, "B S K H"],
    v: Float[Array, "B S K H"],
    data: Operands,
    static: Static,
) -> tuple[Float[Array, "B T N H"], Float[Array, "B N T"]]:
    """See `flash.Forward`; temporary memory is B x N x ROWS x S."""
    B, T, N, H = q.shape
    S, K = k.shape[1:3]
    q, k, v = _by_head(q, K), jnp.moveaxis(k, 2, 1), jnp.moveaxis(v, 2, 1)
    outs, sums = [], []
    for group in groups(static, data, T, S):
        others, keys, values = _others(data, group, S), _keys(k, group), _keys(v, group)

        def one(q_BKRH, rows, keys=keys, values=values, others=others):
            scores = _scores(q_BKRH, keys, rows, others, static)[0]
            top = jnp.max(scores, axis=-1, keepdims=True)
            # A row that sees nothing has top = -inf; -inf - -inf would be NaN.
            probs = jnp.exp(scores - jnp.where(top > -jnp.inf, top, 0.0))
            total = jnp.sum(probs, axis=-1, keepdims=True)
            out = _product("BKRS,BKSH->BKRH", probs.astype(values.dtype), values)
            out = out / jnp.where(total == 0.0, 1.0, total)
            return out.astype(q.dtype), (top + jnp.log(total))[..., 0]

        out, lse = jax.lax.map(lambda x: one(*x), _blocks(q, data, group, T))
        outs.append(out)
        sums.append(lse)
    return _joined(outs, N, T), _joined([x[..., None] for x in sums], N, T)[..., 0].swapaxes(1, 2)


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
    """See `flash.Backward`; temporary memory as forward, twice."""
    B, T, N, H = q.shape
    S, K = k.shape[1:3]
    given = _by_head(q, K), _by_head(grad, K), *(_by_head(x, K) for x in _columns(lse, delta))
    k, v = jnp.moveaxis(k, 2, 1), jnp.moveaxis(v, 2, 1)
    dk, dv = (jnp.zeros((B, K, S, H), jnp.float32) for _ in "kv")
    dqs = []
    for group in groups(static, data, T, S):
        others, keys, values = _others(data, group, S), _keys(k, group), _keys(v, group)

        def one(sums, x, keys=keys, values=values, others=others):
            (q_BKRH, grad_BKRH, lse, delta), rows = x
            scores, slope = _scores(q_BKRH, keys, rows, others, static)
            probs = jnp.exp(scores - jnp.where(lse > -jnp.inf, lse, 0.0))
            moved = _product("BKRH,BKSH->BKRS", grad_BKRH, values)
            change = probs * (moved - delta) * static.scale
            change = (change if slope is None else change * slope).astype(keys.dtype)
            dq = _product("BKRS,BKSH->BKRH", change, keys)
            dk = _product("BKRS,BKRH->BKSH", change, q_BKRH)
            dv = _product("BKRS,BKRH->BKSH", probs.astype(values.dtype), grad_BKRH)
            return (sums[0] + dk, sums[1] + dv), dq.astype(q.dtype)

        none = (jnp.zeros(keys.shape, jnp.float32), jnp.zeros(values.shape, jnp.float32))
        (dk_part, dv_part), dq = jax.lax.scan(one, none, _blocks(given, data, group, T))
        dk = dk.at[:, :, group.first : group.last].add(dk_part)
        dv = dv.at[:, :, group.first : group.last].add(dv_part)
        dqs.append(dq)
    dk, dv = (jnp.moveaxis(x, 1, 2).astype(k.dtype) for x in (dk, dv))
    return _joined(dqs, N, T), dk, dv


CHUNKED = Kernel(forward, backward)


def _product(equation: str, *operands: jax.Array) -> jax.Array:
    return jnp.einsum(equation, *operands, preferred_element_type=jnp.float32)


def _by_head(x, K: int):
    """[B,T,N,H] to [B,K,T,G,H]: queries of one key head beside each other."""
    return jnp.moveaxis(x.reshape(*x.shape[:2], K, -1, x.shape[3]), 2, 1)


def _columns(*given: jax.Array) -> Iterator[jax.Array]:
    """[B,N,T] to [B,T,N,1]."""
    return (x.swapaxes(1, 2)[..., None] for x in given)


def _keys(x, group: Group):
    return x[:, :, group.first : group.last]


def _blocks(x: Any, data: Operands, group: Group, T: int) -> tuple[Any, Operands]:
    """The queries (a tree of [B,K,T,G,H]) and their side of the mask, block by block."""
    stop = min(group.start + group.rows * group.blocks, T)
    heads = jax.tree.leaves(x)[0].shape[3]

    def cut(x, axis):
        """[..., T, ...] to [blocks, ..., rows, ...]; rows beyond T are zeros."""
        x = jax.lax.slice_in_dim(x, group.start, stop, axis=axis)
        pad = [(0, 0)] * x.ndim
        pad[axis] = (0, -x.shape[axis] % group.rows)
        shape = (*x.shape[:axis], group.blocks, group.rows, *x.shape[axis + 1 :])
        return jnp.moveaxis(jnp.pad(x, pad).reshape(shape), axis, 0)

    def rows(x):
        x = cut(x, 2)
        return x.reshape(*x.shape[:3], -1, x.shape[-1])

    def repeated(x):
        """One for each of the G queries that stand beside each other."""
        return None if x is None else jnp.repeat(cut(x, 1), heads, axis=2)

    positions = jnp.arange(T)[None] if data.q_positions is None else data.q_positions
    allow = None if data.allow is None else data.allow[..., group.first : group.last]
    return jax.tree.map(rows, x), Operands(
        q_positions=repeated(positions), q_segments=repeated(data.q_segments), allow=repeated(allow)
    )


def _others(data: Operands, group: Group, S: int) -> Operands:
    """The keys' side of the mask of a group."""
    positions = jnp.arange(S)[None] if data.kv_positions is None else data.kv_positions
    segments = data.kv_segments
    return Operands(
        kv_positions=positions[:, group.first : group.last],
        kv_segments=None if segments is None else segments[:, group.first : group.last],
        prefix=data.prefix,
    )


def _scores(q_BKRH, k_BKSH, rows: Operands, others: Operands, static: Static):
    """The scores, -inf where hidden, and the slope of the softcap (None without)."""
    scores = _product("BKRH,BKSH->BKRS", q_BKRH, k_BKSH) * static.scale
    slope = None
    if static.softcap is not None:
        share = jnp.tanh(scores / static.softcap)
        scores, slope = static.softcap * share, 1 - jnp.square(share)

    def at(x, *axes):
        return None if x is None else jnp.expand_dims(x, axes)

    shown = seen(
        static.structure,
        Operands(
            q_positions=at(rows.q_positions, 1, 3),
            q_segments=at(rows.q_segments, 1, 3),
            prefix=at(others.prefix, 1, 2, 3),
            allow=at(rows.allow, 1),
        ),
        Operands(
            kv_positions=at(others.kv_positions, 1, 2), kv_segments=at(others.kv_segments, 1, 2)
        ),
    )
    return (scores if shown is None else jnp.where(shown, scores, -jnp.inf)), slope


def _joined(parts: list[jax.Array], N: int, T: int) -> jax.Array:
    """Blocks [n,B,K,t x G,H] of the groups to [B,T,N,H]."""
    whole = []
    for part in parts:
        blocks, B, K, _, H = part.shape
        x = part.reshape(blocks, B, K, -1, N // K, H)
        whole.append(jnp.transpose(x, (1, 0, 3, 2, 4, 5)).reshape(B, -1, N, H))
    return jnp.concatenate(whole, axis=1)[:, :T]
