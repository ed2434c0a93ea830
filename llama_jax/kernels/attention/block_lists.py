"""What a flash kernel visits and hides: a mask as intervals, and as lists of blocks.

All that causal, window, chunk and prefix say of one query is an interval of key positions,
`low <= position < high`; with the segments that is all that a kernel need read of a mask (`Shown`).
Which blocks a tile of queries visits, and in which order, is a row of a table (`ways`): first those
that are PARTLY seen, then the WHOLE ones, for which a kernel skips all of that arithmetic; HIDDEN
ones are not visited. Where both kinds are runs of neighbours (`block_spans`), the row says where
they begin, and `nth` counts on; where they may have holes, it is a list. So what is stored of a
mask without data, or with a prefix alone, grows with the length and not with its square.

Without data in the mask all of it is constant, from NumPy while tracing.
"""

from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from llama_jax.kernels.attention import block_spans
from llama_jax.kernels.attention.block_mask import HIDDEN, NOWHERE, PARTLY, WHOLE, Operands, codes
from llama_jax.kernels.attention.block_spans import Spans
from llama_jax.kernels.attention.mask import Mask

FARTHEST = np.iinfo(np.int32).max  # the position of a key that does not exist
RUNS = 6  # numbers of a row that says where runs begin; no list is as wide


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

    @property
    def kinds(self) -> int:
        """How many numbers of a key are read."""
        return 0 if self.keys is None else self.keys.shape[1]


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


def ways(
    structure: Mask, data: Operands, T: int, S: int, t: int, s: int, by_keys: bool = False
) -> Any:
    """What each tile of t queries visits of the blocks of s keys, or each tile of keys of queries.

    A row is [how many are PARTLY seen, how many are seen at all, ...]; for the others see `nth`.

    Args:
      structure: the static part of the mask.
      data: the arrays of the mask.
      T: queries.
      S: keys.
      t: queries of a block.
      s: keys of a block.
      by_keys: tiles are of keys. Padded keys have rows of their own then, and need no mask.

    Returns:
      [R, X, RUNS] or, where a mask may leave holes, [R, X, more]; NumPy's without data.
    """
    padded = S % s > 0 and not by_keys
    if all(x is None for x in data._replace(prefix=None)):
        found = block_spans.spans(structure, data.prefix, T, S, t, s, padded)
        return runs(found.turned() if by_keys else found)
    code = codes(structure, data, T, S, t, s)
    return visits(code.swapaxes(1, 2) if by_keys else code, padded)


def nth(way: Any, row: Any, tile: Any, n: Any) -> Any:
    """The block that a tile visits in step n; `way` is a table of `ways`, or a kernel's ref."""
    if way.shape[2] != RUNS:
        return way[row, tile, 2 + n]
    partly, left = way[row, tile, 0], way[row, tile, 2]
    starts = [way[row, tile, i] for i in (3, 4, 5)]
    return n + jnp.where(n < left, starts[0], jnp.where(n < partly, starts[1], starts[2]))


def runs(spans: Spans) -> Any:
    """Rows of `ways` for blocks that are neighbours: [R, X, RUNS].

    After both counts: how many PARTLY seen blocks come before those seen WHOLE, and what is to be
    added to the number of a step for a block of these, of the PARTLY seen ones behind, and of the
    WHOLE ones.
    """
    low, high, first, stop, _ = spans.ordered()
    xp: Any = np if isinstance(low, np.ndarray) else jnp
    left, whole, seen = first - low, stop - first, high - low
    partly = seen - whole
    row = partly, seen, left, low, stop - left, first - partly
    return xp.stack(row, axis=2).astype(np.int32)


def visits(code: Any, padded: bool) -> Any:
    """The blocks that each tile visits: [R, X, 2 + Y, or one more] from codes [R, X, Y].

    A row is: how many are PARTLY seen, how many are seen at all, then the blocks in that order; one
    that would be as wide as a row of runs has another block, which is not visited.
    `padded`: the last block has keys that do not exist, so it is never WHOLE.
    """
    xp: Any = np if isinstance(code, np.ndarray) else jnp
    last = np.arange(code.shape[2]) == code.shape[2] - 1
    code = xp.where(padded & last & (code == WHOLE), PARTLY, code)
    partly, seen = (code == PARTLY).sum(axis=2), (code != HIDDEN).sum(axis=2)
    rank = xp.where(code == PARTLY, 0, xp.where(code == WHOLE, 1, 2))
    order = xp.argsort(rank, axis=2, stable=True) if xp is jnp else rank.argsort(2, kind="stable")
    counts = xp.stack([partly, seen], axis=2)
    row = [counts, order, order[:, :, -1:]] if code.shape[2] + 2 == RUNS else [counts, order]
    return xp.concatenate(row, axis=2).astype(np.int32)
