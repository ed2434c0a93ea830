"""The list of blocks that a TPU kernel visits, in place of a grid over all of them.

A kernel's grid has one axis of steps. A step is one block of scores: an `owner` (the block whose
result is being summed) and an `other` (the block that passes by), packed into one int32 of the
scalar memory, where the kernel and the index maps of its pipeline read it:

    owner << 17 | other << 4 | code << 2 | first << 1 | last

Blocks that the mask hides are not in the list, so nothing of them is fetched or computed. `first`
and `last` mark the steps of one owner; an owner that sees nothing keeps one HIDDEN step, in which
its zeros are written. A kernel that sums for the others too writes those sums in steps of their
own at the end, one FLUSH for each. For a mask without data the list is a constant and has its exact
length. Otherwise it is made while running: the grid is as long as the longest list of the batch,
and shorter lists repeat their last step, as HIDDEN or as one more FLUSH.
"""

from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int

from llama_jax.kernels.attention.block_mask import HIDDEN, PARTLY, WHOLE, Operands, codes
from llama_jax.kernels.attention.mask import Mask

MOST_OWNERS, MOST_OTHERS = 1 << 14, 1 << 13
FLUSH = 3  # a code beside HIDDEN, PARTLY and WHOLE: nothing to compute, the other's sums are whole


class Steps(NamedTuple):
    """The steps of each row of a batch.

    Attributes:
      packed: [length] if all rows of the batch have the same steps, else [B * length].
      length: steps of a row, known while tracing; at least as many as needed.
      count: how many steps any row needs; a number, or computed while running.
      kinds: the codes that may occur.
      tiles: blocks of scores that a row computes, at most.
    """

    packed: np.ndarray | Int[Array, " L"]
    length: int
    count: Any
    kinds: frozenset[int]
    tiles: int

    @property
    def stride(self) -> int:
        """From the first step of a row of the batch to that of the next."""
        return 0 if self.packed.shape == (self.length,) else self.length


class Step(NamedTuple):
    """One step, unpacked inside a kernel."""

    owner: Any
    other: Any
    code: Any
    first: Any
    last: Any


def unpack(packed: Any) -> Step:
    """Takes a packed step apart."""
    return Step(
        packed >> 17,
        (packed >> 4) & (MOST_OTHERS - 1),
        (packed >> 2) & 3,
        (packed & 2) != 0,
        (packed & 1) != 0,
    )


def by_queries(
    structure: Mask, data: Operands, T: int, S: int, q_block: int, kv_block: int
) -> Steps:
    """Steps owned by blocks of queries: all keys that a block sees, then the next block."""
    return _steps(*_codes(structure, data, T, S, q_block, kv_block))


def by_keys(structure: Mask, data: Operands, T: int, S: int, q_block: int, kv_block: int) -> Steps:
    """Steps owned by blocks of keys: all queries that see a block, then the next block."""
    code, most = _codes(structure, data, T, S, q_block, kv_block)
    return _steps(code.swapaxes(1, 2), most.swapaxes(1, 2))


def both_ways(
    structure: Mask, data: Operands, T: int, S: int, q_block: int, kv_block: int, queries: slice
) -> Steps:
    """Steps of `by_keys` over some of the blocks of queries, which are flushed at the end."""
    code, most = _codes(structure, data, T, S, q_block, kv_block)
    code, most = code[:, queries], most[:, queries]
    return _steps(code.swapaxes(1, 2), most.swapaxes(1, 2), flush=True)


def longest(structure: Mask, moved: bool, T: int, S: int, q_block: int, kv_block: int) -> int:
    """The length of the longest of a row's lists; `moved`: by positions or a prefix."""
    code = _most(structure, moved, T, S, q_block, kv_block)
    return int(max(_kept(code).sum(), _kept(code.swapaxes(1, 2)).sum() + code.shape[1]))


def _most(structure: Mask, moved: bool, *sizes: int) -> np.ndarray:
    """What may be seen whatever the data; `moved`: by positions or a prefix, so all may be."""
    code = codes(Mask() if moved else structure, Operands(), *sizes)
    assert isinstance(code, np.ndarray)
    return code


def _codes(structure: Mask, data: Operands, T: int, S: int, q_block: int, kv_block: int):
    code = codes(structure, data, T, S, q_block, kv_block)
    if S % kv_block:
        # The padding of the last block of keys is there to be hidden.
        last = np.arange(code.shape[2]) == code.shape[2] - 1
        xp = np if isinstance(code, np.ndarray) else jnp
        code = xp.where(last & (code == WHOLE), np.int8(PARTLY), code)
    moved = data.q_positions is not None or data.prefix is not None
    return code, _most(structure, moved, T, S, q_block, kv_block)


def _kept(code: Any) -> Any:
    """The blocks to visit: those not hidden, and one of an owner that has no other."""
    keep = code != HIDDEN
    first = np.arange(code.shape[2]) == 0
    return keep | (first & ~keep.any(axis=2, keepdims=True))


def _steps(code: Any, most: np.ndarray, flush: bool = False) -> Steps:
    B, owners, others = code.shape
    if owners > MOST_OWNERS or others > MOST_OTHERS:
        raise ValueError(
            f"{owners} x {others} blocks are more than {MOST_OWNERS} x {MOST_OTHERS}; "
            "use larger blocks"
        )
    xp: Any = np if isinstance(code, np.ndarray) else jnp
    keep = _kept(code)
    nth = xp.cumsum(keep, axis=2, dtype=np.int32)
    first, last = keep & (nth == 1), keep & (nth == nth[:, :, -1:])
    packed = (
        (np.arange(owners, dtype=np.int32) << 17)[:, None]
        | (np.arange(others, dtype=np.int32) << 4)
        | (code.astype(np.int32) << 2)
        | (first.astype(np.int32) << 1)
        | last.astype(np.int32)
    )
    flushes = (np.arange(others if flush else 0, dtype=np.int32) << 4) | (FLUSH << 2)
    flushes |= (owners - 1) << 17  # the one visited last stays where it is
    kinds = {FLUSH} if flush else set()
    tiles = int((most != HIDDEN).sum())
    if isinstance(code, np.ndarray):
        steps = np.concatenate([packed[keep], flushes])
        kinds |= set(np.unique(code).tolist())
        return Steps(steps, steps.size, steps.size, frozenset(kinds), tiles)
    length = int(_kept(most).sum()) + flushes.size
    # Each step's place: after those of the owners before it. The others go beyond the end: dropped.
    # (Sorting would do too; the TPU compiler takes half a minute for 65536 numbers.)
    stops = jnp.cumsum(nth[:, :, -1], axis=1)
    place = jnp.where(keep, (stops - nth[:, :, -1])[:, :, None] + nth - 1, length)
    idle = jnp.max(jnp.where(keep, packed, 0), axis=(1, 2)) & ~15
    if flush:
        idle = jnp.full((B,), flushes[-1])
    steps = jnp.broadcast_to(idle[:, None], (B, length))
    rows = jnp.arange(B)[:, None, None]
    steps = steps.at[rows, place].set(packed, mode="drop")
    after = stops[:, -1:] + np.arange(flushes.size)
    steps = steps.at[rows[:, :, 0], after].set(flushes, mode="drop").reshape(-1)
    count = jnp.max(stops) + flushes.size
    return Steps(steps, length, count, frozenset(kinds | {HIDDEN, PARTLY, WHOLE}), tiles)
