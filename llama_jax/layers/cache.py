"""The cache of a decoder as an explicit pytree: an argument and a result, never hidden."""

from dataclasses import dataclass, field, replace

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class KV:
    """Keys and values of one layer."""

    k: Float[Array, "B S K H"]
    v: Float[Array, "B S K H"]


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Slots:
    """Keys and values of one layer head by head, the order in which one query reads them.

    Stored as [B,S,K,H] they would be copied into this order for every token, and so would a batch
    of one as [1,K,S,H], for XLA drops that axis in products; it is stored as [K,S,H]. Stacked
    layers put an L in front.
    """

    k: Float[Array, "*LB K S H"]
    v: Float[Array, "*LB K S H"]

    @property
    def kv(self) -> KV:
        """One layer's as [B,S,K,H]; the compiler undoes this turn by attention's own."""
        k, v = (x if x.ndim == 4 else x[None] for x in (self.k, self.v))
        return KV(k.swapaxes(1, 2), v.swapaxes(1, 2))

    @classmethod
    def empty(cls, batch: int, heads: int, slots: int, head_dim: int, dtype) -> "Slots":
        """Zeros for one layer."""
        shape = (*([batch] if batch > 1 else []), heads, slots, head_dim)
        return cls(jnp.zeros(shape, dtype), jnp.zeros(shape, dtype))


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class LayerCache:
    """What one block remembers: its own past, and the memory's keys, computed once."""

    own: Slots | None = None
    cross: KV | None = None


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Cache:
    """The state of decoding.

    Attributes:
      layers: a LayerCache for each block of the stack's pattern, arrays stacked over repeats.
      index: slots written so far, the same for all rows.
      positions: position of the token in each slot; -1 where none is.
      valid: slots that hold a token.
      memory_valid: tokens of the cross-attended memory that exist, or None without a memory.
      memory_parts: lengths of the streams joined in the memory.
    """

    layers: tuple[LayerCache, ...]
    index: Int[Array, ""]
    positions: Int[Array, "B S"]
    valid: Bool[Array, "B S"]
    memory_valid: Bool[Array, "B M"] | None = None
    memory_parts: tuple[int, ...] = field(default=(), metadata={"static": True})

    @property
    def slots(self) -> int:
        """How many tokens fit."""
        return self.positions.shape[1]

    def write(self, positions_BT: Int[Array, "B T"], valid_BT: Bool[Array, "B T"]) -> "Cache":
        """Notes the tokens of this step; their keys are written by the layers."""
        at = (0, self.index)
        return replace(
            self,
            index=self.index + positions_BT.shape[1],
            positions=jax.lax.dynamic_update_slice(self.positions, positions_BT, at),
            valid=jax.lax.dynamic_update_slice(self.valid, valid_BT, at),
        )


def write(cache: LayerCache, new: KV, index: Int[Array, ""] | None) -> Slots:
    """Puts the keys and values of T new tokens into slots index ... index+T-1 of a block's own."""
    own = cache.own
    if own is None or index is None:
        raise ValueError("a cache without slots; make it with Stack.empty_cache")

    def put(slots: jax.Array, x_BTKH: jax.Array) -> jax.Array:
        x = x_BTKH.swapaxes(1, 2).astype(slots.dtype)
        x = x if slots.ndim == 4 else x[0]
        return jax.lax.dynamic_update_slice_in_dim(slots, x, index, slots.ndim - 2)

    return Slots(put(own.k, new.k), put(own.v, new.v))


def empty_slots(
    batch: int, slots: int
) -> tuple[Int[Array, ""], Int[Array, "B S"], Bool[Array, "B S"]]:
    """Index, positions and validity of a cache that holds nothing."""
    return (
        jnp.zeros((), jnp.int32),
        jnp.full((batch, slots), -1, jnp.int32),
        jnp.zeros((batch, slots), bool),
    )
