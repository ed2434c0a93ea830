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

A list has as many steps as there are blocks to compute, so it grows with the square of the length.
Where a mask without data would need more than STEPS_BYTES, its intervals (`block_spans`) take the
place of the list: two int32 an owner, and as many steps for each as the one that sees most needs,
rounded up to a power of two, so that a shift gives the owner. Those left over fetch nothing new.
"""

from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int

from llama_jax.kernels.attention import block_spans
from llama_jax.kernels.attention.block_mask import HIDDEN, PARTLY, WHOLE, Operands, codes
from llama_jax.kernels.attention.block_spans import Spans
from llama_jax.kernels.attention.mask import Mask

MOST_OWNERS, MOST_OTHERS = 1 << 14, 1 << 13
# Of 1 MiB scalar memory on every generation since v4; the rest is the compiler's.
STEPS_BYTES = 768 * 1024
FLUSH = 3  # a code beside HIDDEN, PARTLY and WHOLE: nothing to compute, the other's sums are whole


class Steps(NamedTuple):
    """The steps of each row of a batch.

    Attributes:
      packed: [length] if all rows of the batch have the same steps, else [B * length]; the
        intervals of each owner where there is no list, [2 * owners].
      length: steps of a row, known while tracing; at least as many as needed.
      count: how many steps any row needs; a number, or computed while running.
      kinds: the codes that may occur.
      tiles: blocks of scores that a row computes, at most.
      shift: log2 of the steps of each owner where there is no list, else None.
    """

    packed: np.ndarray | Int[Array, " L"]
    length: int
    count: Any
    kinds: frozenset[int]
    tiles: int
    shift: int | None = None

    @property
    def stride(self) -> int:
        """From the first step of a row of the batch to that of the next."""
        alone = self.shift is not None or self.packed.shape == (self.length,)
        return 0 if alone else self.length


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


def within(packed: Any, step: Any, shift: int) -> Step:
    """A step by the intervals of its owner."""
    owner, nth = step >> shift, step & ((1 << shift) - 1)
    seen, whole = packed[2 * owner], packed[2 * owner + 1]
    low, first = seen >> 16, whole >> 16
    end = jnp.maximum(seen & 0xFFFF, low + 1)  # of an owner that sees nothing, too
    other = jnp.minimum(low + nth, end - 1)
    code = jnp.where((other >= first) & (other < (whole & 0xFFFF)), WHOLE, PARTLY)
    code = jnp.where(low + nth < (seen & 0xFFFF), code, HIDDEN)
    return Step(owner, other, code, nth == 0, low + nth == end - 1)


def by_queries(
    structure: Mask, data: Operands, T: int, S: int, q_block: int, kv_block: int
) -> Steps:
    """Steps owned by blocks of queries: all keys that a block sees, then the next block."""
    if all(x is None for x in data):
        return _regular(_spans(structure, T, S, q_block, kv_block))
    return _steps(*_codes(structure, data, T, S, q_block, kv_block))


def by_keys(structure: Mask, data: Operands, T: int, S: int, q_block: int, kv_block: int) -> Steps:
    """Steps owned by blocks of keys: all queries that see a block, then the next block."""
    if all(x is None for x in data):
        return _regular(_spans(structure, T, S, q_block, kv_block).turned())
    code, most = _codes(structure, data, T, S, q_block, kv_block)
    return _steps(code.swapaxes(1, 2), most.swapaxes(1, 2))


def both_ways(
    structure: Mask, data: Operands, T: int, S: int, q_block: int, kv_block: int, queries: slice
) -> Steps:
    """Steps of `by_keys` over some of the blocks of queries, which are flushed at the end."""
    if all(x is None for x in data):
        found = _spans(structure, T, S, q_block, kv_block).some(queries).turned()
        return _listed(found, flush=True)
    code, most = _codes(structure, data, T, S, q_block, kv_block)
    code, most = code[:, queries], most[:, queries]
    return _steps(code.swapaxes(1, 2), most.swapaxes(1, 2), flush=True)


def longest(structure: Mask, moved: bool, T: int, S: int, q_block: int, kv_block: int) -> int:
    """The length of the longest of a row's lists; `moved`: by positions or a prefix."""
    found = _spans(Mask() if moved else structure, T, S, q_block, kv_block)
    turned = found.turned()
    return max(int(_counts(found).sum()), int(_counts(turned).sum()) + turned.others)


def _spans(structure: Mask, T: int, S: int, q_block: int, kv_block: int) -> Spans:
    """By queries; the padding of the last block of keys is there to be hidden."""
    return block_spans.spans(structure, None, T, S, q_block, kv_block, S % kv_block > 0)


def _counts(spans: Spans) -> np.ndarray:
    """Steps of each owner; one that sees nothing has one."""
    return np.maximum(spans.high - spans.low, 1)[0]


def _regular(spans: Spans) -> Steps:
    """The steps of a mask without data: a list, or by the rule where that is too long."""
    count = _counts(spans)
    if 4 * int(count.sum()) <= STEPS_BYTES:
        return _listed(spans)
    low, high, first, stop = (x[0] for x in spans.ordered()[:4])
    low = np.minimum(low, spans.others - 1)  # of an owner that sees nothing
    high = np.where(spans.high[0] > spans.low[0], high, low)
    packed = np.stack([low << 16 | high, first << 16 | stop], axis=1).astype(np.int32).reshape(-1)
    shift = int(count.max() - 1).bit_length()
    length = count.size << shift
    tiles = int((high - low).sum())
    return Steps(packed, length, length, frozenset({HIDDEN, PARTLY, WHOLE}), tiles, shift)


def _listed(spans: Spans, flush: bool = False) -> Steps:
    """The list of a mask without data."""
    low, high, first, stop = (x[0] for x in spans.ordered()[:4])
    count = _counts(spans)
    _check(count.size, spans.others)
    owner = np.repeat(np.arange(count.size, dtype=np.int32), count)
    nth = np.arange(owner.size, dtype=np.int32) - np.repeat(np.cumsum(count) - count, count)
    none = (high == low)[owner]
    other = np.where(none, 0, low[owner] + nth)
    code = np.where((other >= first[owner]) & (other < stop[owner]), WHOLE, PARTLY)
    code = np.where(none, HIDDEN, code)
    ends = (nth == 0) << 1 | (nth == count[owner] - 1)
    steps = (owner << 17 | other << 4 | code << 2 | ends).astype(np.int32)
    kinds = set(np.unique(code).tolist())
    if flush:
        steps, kinds = np.concatenate([steps, _flushes(count.size, spans.others)]), kinds | {FLUSH}
    return Steps(steps, steps.size, steps.size, frozenset(kinds), int((high - low).sum()))


def _flushes(owners: int, others: int) -> np.ndarray:
    """The steps that flush every other; the owner visited last stays where it is."""
    other = np.arange(others, dtype=np.int32)
    return (owners - 1) << 17 | other << 4 | FLUSH << 2


def _check(owners: int, others: int) -> None:
    if owners > MOST_OWNERS or others > MOST_OTHERS:
        raise ValueError(
            f"{owners} x {others} blocks are more than {MOST_OWNERS} x {MOST_OTHERS}; "
            "use larger blocks"
        )


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
        code = jnp.where(last & (code == WHOLE), np.int8(PARTLY), code)
    moved = data.q_positions is not None or data.prefix is not None
    return code, _most(structure, moved, T, S, q_block, kv_block)


def _kept(code: Any) -> Any:
    """The blocks to visit: those not hidden, and one of an owner that has no other."""
    keep = code != HIDDEN
    first = np.arange(code.shape[2]) == 0
    return keep | (first & ~keep.any(axis=2, keepdims=True))


def _steps(code: Any, most: np.ndarray, flush: bool = False) -> Steps:
    """The lists of a mask with data, made while running."""
    B, owners, others = code.shape
    _check(owners, others)
    keep = _kept(code)
    nth = jnp.cumsum(keep, axis=2, dtype=np.int32)
    first, last = keep & (nth == 1), keep & (nth == nth[:, :, -1:])
    packed = (
        (np.arange(owners, dtype=np.int32) << 17)[:, None]
        | (np.arange(others, dtype=np.int32) << 4)
        | (code.astype(np.int32) << 2)
        | (first.astype(np.int32) << 1)
        | last.astype(np.int32)
    )
    flushes = _flushes(owners, others if flush else 0)
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
    if flush:
        after = stops[:, -1:] + np.arange(flushes.size)
        steps = steps.at[rows[:, :, 0], after].set(flushes, mode="drop")
    kinds = frozenset({HIDDEN, PARTLY, WHOLE} | ({FLUSH} if flush else set()))
    count = jnp.max(stops) + flushes.size
    return Steps(steps.reshape(-1), length, count, kinds, int((most != HIDDEN).sum()))
