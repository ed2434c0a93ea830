"""Which blocks a mask shows, as intervals: what need not be listed block by block.

Positions 0, 1, ... under causal, window, chunk and prefix: the blocks of keys that a block of
queries sees lie side by side, and so do those among them that it sees whole. Four numbers a block
say what `block_mask.codes` says with one for each pair, so their size grows with the length and not
with its square.

    code of a row    0 0 1 2 2 2 1 0        low 2, first 3, stop 6, high 7
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int

from llama_jax.kernels.attention.mask import Mask


class Spans(NamedTuple):
    """Intervals of the blocks of the other side, for each block of an owner; R is B or 1.

    None of the four decreases from block to block, so `high < low` and `stop < first` say "none"
    until `ordered` makes them equal.

    Attributes:
      low: [R, X]; the first block that is seen.
      high: [R, X]; the block after the last that is seen.
      first: [R, X]; the first block that is seen whole.
      stop: [R, X]; the block after the last that is seen whole.
      others: blocks of the other side.
    """

    low: np.ndarray | Int[Array, "R X"]
    high: np.ndarray | Int[Array, "R X"]
    first: np.ndarray | Int[Array, "R X"]
    stop: np.ndarray | Int[Array, "R X"]
    others: int

    def some(self, owners: slice) -> "Spans":
        """Those of some blocks of the owner."""
        low, high, first, stop = (x[:, owners] for x in self[:4])
        return Spans(low, high, first, stop, self.others)

    def turned(self) -> "Spans":
        """The same with the other side's blocks as owners."""
        y = np.arange(self.others, dtype=np.int32)
        # Seen are the x with low[x] <= y < high[x]: from the first with high > y on.
        ends = (self.high, self.low, self.stop, self.first)
        low, high, first, stop = (_places(x, y) for x in ends)
        return Spans(low, high, first, stop, self.low.shape[1])

    def ordered(self) -> "Spans":
        """With low <= first <= stop <= high."""
        xp: Any = np if isinstance(self.low, np.ndarray) else jnp
        high = xp.maximum(self.low, self.high)
        first = xp.clip(self.first, self.low, high)
        return Spans(self.low, high, first, xp.clip(self.stop, first, high), self.others)


def spans(
    structure: Mask,
    prefix: Int[Array, " B"] | None,
    T: int,
    S: int,
    q_block: int,
    kv_block: int,
    padded: bool = False,
) -> Spans:
    """The blocks of keys that each block of queries sees; NumPy's without a prefix.

    Args:
      structure: the static part of the mask.
      prefix: each row's, if there is one.
      T: queries.
      S: keys.
      q_block: queries of a block.
      kv_block: keys of a block.
      padded: the last block has keys that do not exist, so it is never seen whole.
    """
    (q0, q1), (kv0, kv1) = _ends(T, q_block), _ends(S, kv_block)
    low = first = np.zeros_like(q0)
    high = stop = np.full_like(q0, len(kv0))

    def before(x, value, side):
        return np.searchsorted(x, value, side).astype(np.int32)

    more = None
    if structure.causal:
        high, stop = before(kv0, q1, "right"), before(kv1, q0, "right")
        if prefix is not None:
            more = [jnp.searchsorted(x, prefix).astype(jnp.int32)[:, None] for x in (kv0, kv1)]
            high, stop = jnp.maximum(high, more[0]), jnp.maximum(stop, more[1])
    xp: Any = np if more is None else jnp
    if (window := structure.window) is not None:
        low, first = before(kv1, q0 - window, "right"), before(kv0, q1 - window, "right")
        high = xp.minimum(high, before(kv0, q1 + window, "left"))
        stop = xp.minimum(stop, before(kv1, q0 + window, "left"))
    if structure.chunk is not None:
        q0, q1, kv0, kv1 = (x // structure.chunk for x in (q0, q1, kv0, kv1))
        low = np.maximum(low, before(kv1, q0, "left"))
        first = np.maximum(first, before(kv0, q1, "left"))
        high = xp.minimum(high, before(kv0, q1, "right"))
        stop = xp.minimum(stop, before(kv1, q0, "right"))
    if padded:
        stop = xp.minimum(stop, len(kv1) - 1)
    rows = 1 if more is None else more[0].shape[0]
    low, high, first, stop = (xp.broadcast_to(x, (rows, len(q0))) for x in (low, high, first, stop))
    return Spans(low, high, first, stop, len(kv0))


def _ends(length: int, block: int) -> tuple[np.ndarray, np.ndarray]:
    """The first and the last position of each block."""
    first = np.arange(0, length, block, dtype=np.int32)
    return first, np.minimum(first + block, length).astype(np.int32) - 1


def _places(x: Any, y: np.ndarray) -> Any:
    """How many of each row of x [R, X] are at most y; [R, Y]."""
    if isinstance(x, np.ndarray):
        return np.stack([np.searchsorted(row, y, "right").astype(np.int32) for row in x])
    return jax.vmap(lambda row: jnp.searchsorted(row, y, side="right").astype(jnp.int32))(x)
