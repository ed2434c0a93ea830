"""A mask cut into blocks: what a kernel reads of it, and which blocks it may skip.

A block is some queries by some keys. Its code says how much of it the mask shows:

    HIDDEN   nothing: neither its keys nor its scores are needed
    PARTLY   compute the scores, then hide some
    WHOLE    compute the scores, nothing to hide

Codes are computed from the least and greatest position and segment of each block, so HIDDEN and
WHOLE are certain and PARTLY means "perhaps". Where the mask has no data they are constants, from
NumPy while tracing.
"""

from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int

from llama_jax.kernels.attention.mask import Mask

HIDDEN, PARTLY, WHOLE = 0, 1, 2

# The segment of a key that does not exist. No segment of a query may have this number.
NOWHERE = np.iinfo(np.int32).min


class Operands(NamedTuple):
    """The data of a mask as a kernel reads it, int32 and int8; None where the mask has none.

    Attributes:
      q_positions: [B, T]; None if they are 0, 1, ...; both positions are given or none.
      kv_positions: [B, S].
      q_segments: [B, T]; both segments are given or none.
      kv_segments: [B, S]; NOWHERE for a key that is not valid.
      prefix: [B].
      allow: [B, T, S] int8, 1 where seen.
    """

    q_positions: Int[Array, "B T"] | None = None
    kv_positions: Int[Array, "B S"] | None = None
    q_segments: Int[Array, "B T"] | None = None
    kv_segments: Int[Array, "B S"] | None = None
    prefix: Int[Array, " B"] | None = None
    allow: Int[Array, "B T S"] | None = None


def operands(mask: Mask, B: int, T: int, S: int) -> Operands:
    """The data of a mask, B rows each; keys that are not valid are in the segment NOWHERE."""

    def rows(x, *shape, dtype=jnp.int32):
        return None if x is None else jnp.broadcast_to(jnp.asarray(x, dtype), (B, *shape))

    def counted(given, length):
        return jnp.arange(length)[None] if given is None else given

    q_positions = kv_positions = None
    if mask.local and not (mask.q_positions is None and mask.kv_positions is None):
        q_positions = rows(counted(mask.q_positions, T), T)
        kv_positions = rows(counted(mask.kv_positions, S), S)
    q_segments, kv_segments = rows(mask.q_segments, T), rows(mask.kv_segments, S)
    if mask.kv_valid is not None:
        if q_segments is None or kv_segments is None:
            q_segments, kv_segments = jnp.zeros((B, T), jnp.int32), jnp.zeros((B, S), jnp.int32)
        kv_segments = jnp.where(mask.kv_valid, kv_segments, NOWHERE)
    return Operands(
        q_positions,
        kv_positions,
        q_segments,
        kv_segments,
        rows(mask.prefix) if mask.causal else None,
        rows(mask.allow, T, S, dtype=jnp.int8),
    )


def seen(structure: Mask, q: Operands, kv: Operands) -> Any:
    """What a mask shows of one block; None if all of it.

    Args:
      structure: the static part.
      q: q_positions, q_segments [t, 1], prefix (a scalar), allow [t, s] of the block.
      kv: kv_positions, kv_segments [1, s] of the block.
    """
    shown = structure.near(q.q_positions, kv.kv_positions, q.prefix) if structure.local else None
    for part in (
        None if q.q_segments is None else q.q_segments == kv.kv_segments,
        None if q.allow is None else q.allow != 0,
    ):
        if part is not None:
            shown = part if shown is None else shown & part
    return shown


def codes(
    structure: Mask, data: Operands, T: int, S: int, q_block: int, kv_block: int
) -> np.ndarray | Int[Array, "B X Y"]:
    """The code of each block of q_block x kv_block, [B, ceil(T/q_block), ceil(S/kv_block)].

    B is 1 and the result NumPy's if the mask has no data. Queries and keys beyond T and S, in the
    last blocks, are ignored: a kernel that pads hides those keys itself.
    """
    xp: Any = np if all(x is None for x in data) else jnp
    some = np.ones((1, -(-T // q_block), -(-S // kv_block)), bool)
    every = some
    if structure.local:
        q = _span(_counted(data.q_positions, T), q_block, 2)
        kv = _span(_counted(data.kv_positions, S), kv_block, 1)
        prefix = None if data.prefix is None else data.prefix[:, None, None]
        some, every = _near(structure, q, kv, prefix)
    if data.q_segments is not None and data.kv_segments is not None:
        q, kv = _span(data.q_segments, q_block, 2), _span(data.kv_segments, kv_block, 1)
        # NOWHERE would stretch the span of a block's segments; the least of the others counts.
        there = xp.where(data.kv_segments == NOWHERE, np.iinfo(np.int32).max, data.kv_segments)
        low = _span(there, kv_block, 1)[0]
        some = some & (q[1] >= low) & (q[0] <= kv[1])
        every = every & (q[0] == q[1]) & (q[0] == kv[0]) & (kv[0] == kv[1])
    if data.allow is not None:
        low, high = _allowed(data.allow, q_block, kv_block)
        some, every = some & (high > 0), every & (low > 0)
    return xp.where(some, xp.where(every, WHOLE, PARTLY), HIDDEN).astype(np.int8)


def _counted(positions: Any, length: int) -> Any:
    return np.arange(length, dtype=np.int32)[None] if positions is None else positions


def _span(x: Any, size: int, axis: int) -> tuple[Any, Any]:
    """The least and the greatest of each block; the new axis is for the other side."""
    x = _grown(x, size, 1)
    x = x.reshape(x.shape[0], -1, size)
    expand = (np if isinstance(x, np.ndarray) else jnp).expand_dims
    return expand(x.min(axis=2), axis), expand(x.max(axis=2), axis)


def _grown(x: Any, size: int, axis: int) -> Any:
    """Repeats the last entries, which changes no block's least or greatest."""
    pad = [(0, 0)] * x.ndim
    pad[axis] = (0, -x.shape[axis] % size)
    return (np if isinstance(x, np.ndarray) else jnp).pad(x, pad, mode="edge")


def _near(mask: Mask, q: tuple, kv: tuple, prefix: Any) -> tuple[Any, Any]:
    """Whether some and whether all pairs of two spans of positions may see each other."""
    (q0, q1), (kv0, kv1) = q, kv
    some = every = (q0 == q0) & (kv0 == kv0)
    if mask.causal:
        some, every = q1 >= kv0, q0 >= kv1
        if prefix is not None:
            some, every = some | (kv0 < prefix), every | (kv1 < prefix)
    if mask.window is not None:
        some = some & (q0 - kv1 < mask.window) & (kv0 - q1 < mask.window)
        every = every & (q1 - kv0 < mask.window) & (kv1 - q0 < mask.window)
    if mask.chunk is not None:
        (q0, q1), (kv0, kv1) = ((x // mask.chunk for x in span) for span in (q, kv))
        some = some & (q1 >= kv0) & (q0 <= kv1)
        every = every & (q0 == q1) & (q0 == kv0) & (kv0 == kv1)
    return some, every


def _allowed(allow: Any, q_block: int, kv_block: int) -> tuple[Any, Any]:
    allow = _grown(_grown(allow, q_block, 1), kv_block, 2)
    B, T, S = allow.shape
    tiles = allow.reshape(B, T // q_block, q_block, S // kv_block, kv_block)
    return tiles.min(axis=(2, 4)), tiles.max(axis=(2, 4))
