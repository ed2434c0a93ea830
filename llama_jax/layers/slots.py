"""What one layer keeps of the tokens that went through it, as pytrees.

`Contiguous` has a slot for every token, `Ring` for those that a window or a chunk can still show.
Keys and values lie head by head, the order in which one query reads them: stored as [B,S,K,H] they
would be copied into this order for every token, and so would a batch of one as [1,K,S,H], for XLA
drops that axis in products; it is stored as [K,S,H]. Stacked layers put an L in front.
"""

from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from llama_jax.errors import UserError
from llama_jax.layers.inputs import Inputs, Places


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class KV:
    """Keys and values of one layer."""

    k: Float[Array, "B S K H"]
    v: Float[Array, "B S K H"]


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Seen:
    """Keys that the queries of one call may see.

    Attributes:
      kv: the keys and values.
      valid: keys that exist.
      positions: places of the keys and of the queries, or None where their order in the row says
        all.
    """

    kv: KV
    valid: Bool[Array, "B S"]
    positions: tuple[Int[Array, "B T"], Int[Array, "B S"]] | None = None

    @classmethod
    def alone(cls, new: KV, inputs: Inputs, placed: bool = False) -> "Seen":
        """The call's own tokens; `placed` if their order in the row does not say where they are."""
        at = inputs.positions[..., 0]
        return cls(new, inputs.valid, (at, at) if placed else None)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Contiguous:
    """Keys and values of one layer, a slot for every token, in the order of their arrival."""

    k: Float[Array, "*LB K S H"]
    v: Float[Array, "*LB K S H"]

    @property
    def kv(self) -> KV:
        """One layer's as [B,S,K,H]; the compiler undoes this turn by attention's own."""
        return _by_token(self.k, self.v)

    @classmethod
    def empty(cls, batch: int, heads: int, slots: int, head_dim: int, dtype) -> "Contiguous":
        """Zeros for one layer."""
        shape = (*([batch] if batch > 1 else []), heads, slots, head_dim)
        return cls(jnp.zeros(shape, dtype), jnp.zeros(shape, dtype))

    def write(self, new: KV, index: Int[Array, "*rows"]) -> "Contiguous":
        """Puts the keys and values of T new tokens into slots index ... index+T-1."""

        def put(slots: jax.Array, x_BTKH: jax.Array) -> jax.Array:
            x = _by_head(x_BTKH, slots)
            if index.ndim and slots.ndim == 4:
                along = lambda s, x, i: jax.lax.dynamic_update_slice_in_dim(s, x, i, 1)  # noqa: E731
                return jax.vmap(along)(slots, x, index)
            start = jnp.reshape(index, ()) if index.ndim else index
            return jax.lax.dynamic_update_slice_in_dim(slots, x, start, slots.ndim - 2)

        return Contiguous(put(self.k, new.k), put(self.v, new.v))

    def insert(self, row: Any, other: "Contiguous") -> "Contiguous":
        """The only row of another in the place of `row`."""
        if self.k.ndim == other.k.ndim:  # the only row here too, which has no axis
            return other
        k, v = (jnp.expand_dims(x, x.ndim - 3) for x in (other.k, other.v))
        return Contiguous(put_row(self.k, k, row, 4), put_row(self.v, v, row, 4))

    def taken(self, rows_B: Int[Array, " B"]) -> "Contiguous":
        """These rows, in this order."""
        return Contiguous(_taken(self.k, rows_B, 4), _taken(self.v, rows_B, 4))

    def rewound(self, lengths_B: Int[Array, " B"]) -> "Contiguous":
        """Nothing to do: which slots hold a token is the Cache's to know."""
        return self

    def grown(
        self, bigger: "Kept", positions_BS: Int[Array, "B S"], valid_BS: Bool[Array, "B S"]
    ) -> "Kept":
        """The same tokens in a layer's cache for more of them, which holds nothing yet."""
        if isinstance(bigger, Contiguous):
            return Contiguous(front(bigger.k, self.k), front(bigger.v, self.v))

        def write(ring: Ring, mine: Contiguous) -> Ring:
            return ring.write(mine.kv, positions_BS, valid_BS)

        stacked = bigger.positions.ndim == 3
        return (jax.vmap(write) if stacked else write)(bigger, self)

    def step(self, new: KV, inputs: Inputs, chunked: bool = False) -> tuple["Contiguous", Seen]:
        """The cache with new tokens in it, and what these see.

        Args:
          new: keys and values of the call's tokens.
          inputs: with the places of these.
          chunked: the queries see chunks, which begin at positions and not at slots.
        """
        places, at_BT = _places(inputs), inputs.positions[..., 0]
        after = self.write(new, places.index)
        if places.fresh:  # The left padding of a row shifts all its tokens alike.
            return after, Seen.alone(new, inputs, placed=chunked)
        return after, Seen(after.kv, places.valid, (at_BT, places.positions))


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Ring:
    """Keys and values of the newest tokens of one layer: position p lies in slot p modulo S.

    So a window or a chunk of S positions is whole in it, however long the sequence; padding is not
    written.

    Attributes:
      k: keys.
      v: values.
      positions: place of the token in each slot; -1 where none is.
    """

    k: Float[Array, "*LB K S H"]
    v: Float[Array, "*LB K S H"]
    positions: Int[Array, "*L B S"]

    @property
    def kv(self) -> KV:
        """One layer's as [B,S,K,H]."""
        return _by_token(self.k, self.v)

    @property
    def size(self) -> int:
        """S: positions that it holds."""
        return self.positions.shape[-1]

    @classmethod
    def empty(cls, batch: int, heads: int, size: int, head_dim: int, dtype) -> "Ring":
        """A layer's that holds nothing."""
        held = Contiguous.empty(batch, heads, size, head_dim, dtype)
        return cls(held.k, held.v, jnp.full((batch, size), -1, jnp.int32))

    def write(
        self, new: KV, positions_BT: Int[Array, "B T"], valid_BT: Bool[Array, "B T"]
    ) -> "Ring":
        """Puts new tokens in the place of those that are S positions older."""
        newest_B1 = jnp.max(jnp.where(valid_BT, positions_BT, -1), axis=1, keepdims=True)
        kept_BT = valid_BT & (positions_BT > newest_B1 - self.size)
        slot_BT = jnp.where(kept_BT, positions_BT % self.size, self.size)  # beyond the end: dropped
        rows_B1 = jnp.arange(len(slot_BT))[:, None]

        def put(slots: jax.Array, x_BTKH: jax.Array) -> jax.Array:
            x = x_BTKH.astype(slots.dtype)
            if slots.ndim == 3:
                return slots.at[:, slot_BT[0]].set(x[0].swapaxes(0, 1), mode="drop")
            return slots.at[rows_B1, :, slot_BT].set(x, mode="drop")

        positions = self.positions.at[rows_B1, slot_BT].set(positions_BT, mode="drop")
        return Ring(put(self.k, new.k), put(self.v, new.v), positions)

    def insert(self, row: Any, other: "Ring") -> "Ring":
        """The only row of another in the place of `row`."""
        positions = put_row(self.positions, other.positions, row, 2)
        held = Contiguous(self.k, self.v).insert(row, Contiguous(other.k, other.v))
        return Ring(held.k, held.v, positions)

    def taken(self, rows_B: Int[Array, " B"]) -> "Ring":
        """These rows, in this order."""
        k, v = (_taken(x, rows_B, 4) for x in (self.k, self.v))
        return Ring(k, v, _taken(self.positions, rows_B, 2))

    def rewound(self, lengths_B: Int[Array, " B"]) -> "Ring":
        """Without the tokens beyond these lengths; those that they replaced do not come back."""
        kept = self.positions < lengths_B[:, None]
        return replace(self, positions=jnp.where(kept, self.positions, -1))

    def grown(
        self, bigger: "Kept", positions_BS: Int[Array, "B S"], valid_BS: Bool[Array, "B S"]
    ) -> "Kept":
        """The same: a ring grows no more."""
        return self

    def step(self, new: KV, inputs: Inputs, chunked: bool = False) -> tuple["Ring", Seen]:
        """The cache with new tokens in it, and what these see; see `Contiguous.step`."""
        at_BT = inputs.positions[..., 0]
        after = self.write(new, at_BT, inputs.valid)
        if _places(inputs).fresh:
            return after, Seen.alone(new, inputs, placed=chunked)
        if at_BT.shape[1] == 1:
            return after, Seen(after.kv, after.positions >= 0, (at_BT, after.positions))
        # The first of several tokens see what the last of them overwrite.
        kv = jax.tree.map(lambda a, b: jnp.concatenate([a, b.astype(a.dtype)], 1), self.kv, new)
        positions = jnp.concatenate([self.positions, at_BT], axis=1)
        valid = jnp.concatenate([self.positions >= 0, inputs.valid], axis=1)
        return after, Seen(kv, valid, (at_BT, positions))


Kept = Contiguous | Ring


def put_row(mine: jax.Array, other: jax.Array, row: Any, back: int) -> jax.Array:
    """The only row of `other` as row `row`; rows are the axis `back` from the end."""
    return jax.lax.dynamic_update_slice_in_dim(mine, other, row, mine.ndim - back)


def _taken(x: jax.Array, rows_B: jax.Array, back: int) -> jax.Array:
    """Rows by number; rows are the axis `back` from the end, which an only row may not have."""
    return x if len(rows_B) == 1 else jnp.take(x, rows_B, axis=x.ndim - back)


def front(bigger: jax.Array, old: jax.Array) -> jax.Array:
    """The old slots at the front of the new ones."""
    return jax.lax.dynamic_update_slice(bigger, old, (0,) * old.ndim)


def _places(inputs: Inputs) -> Places:
    if inputs.places is None:
        raise UserError("a cache without places; call the Stack, which fills them in")
    return inputs.places


def _by_token(k: jax.Array, v: jax.Array) -> KV:
    k, v = (x if x.ndim == 4 else x[None] for x in (k, v))
    return KV(k.swapaxes(1, 2), v.swapaxes(1, 2))


def _by_head(x_BTKH: jax.Array, slots: jax.Array) -> jax.Array:
    x = x_BTKH.swapaxes(1, 2).astype(slots.dtype)
    return x if slots.ndim == 4 else x[0]
