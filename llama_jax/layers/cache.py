"""The cache of a decoder as an explicit pytree: an argument and a result, never hidden.

What a layer keeps is a type: `Contiguous` has a slot for every token, `Ring` for those that a
window or a chunk can still show. Keys and values lie head by head, the order in which one query
reads them: stored as [B,S,K,H] they would be copied into this order for every token, and so would
a batch of one as [1,K,S,H], for XLA drops that axis in products; it is stored as [K,S,H]. Stacked
layers put an L in front.
"""

from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from llama_jax.layers.inputs import Inputs, Memory, Places


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
      positions: of the keys and of the queries, or None where their order in the row says all.
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
        return KV(*(_by_token(x) for x in (self.k, self.v)))

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
        return Contiguous(_put_row(self.k, k, row, 4), _put_row(self.v, v, row, 4))

    def rewound(self, lengths_B: Int[Array, " B"]) -> "Contiguous":
        """Nothing to do: which slots hold a token is the Cache's to know."""
        return self

    def grown(self, bigger: "Kept", cache: "Cache") -> "Kept":
        """The same tokens in a layer's cache for more of them, which holds nothing yet."""
        if isinstance(bigger, Contiguous):
            return Contiguous(_front(bigger.k, self.k), _front(bigger.v, self.v))

        def write(ring: Ring, mine: Contiguous) -> Ring:
            return ring.write(mine.kv, cache.positions, cache.valid)

        stacked = bigger.positions.ndim == 3
        return (jax.vmap(write) if stacked else write)(bigger, self)

    def step(self, new: KV, inputs: Inputs, chunked: bool = False) -> tuple["Contiguous", Seen]:
        """The cache with new tokens in it, and what these see.

        Args:
          new: keys and values of the call's tokens.
          inputs: with the places of these.
          chunked: the queries see chunks, which begin at positions and not at slots.
        """
        places = _places(inputs)
        after = self.write(new, places.index)
        if places.fresh:  # The left padding of a row shifts all its tokens alike.
            return after, Seen.alone(new, inputs, placed=chunked)
        positions = inputs.positions[..., 0], places.positions
        return after, Seen(after.kv, places.valid, positions)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Ring:
    """Keys and values of the newest tokens of one layer: position p lies in slot p modulo S.

    So a window or a chunk of S positions is whole in it, however long the sequence; padding is not
    written.

    Attributes:
      k: keys.
      v: values.
      positions: of the token in each slot; -1 where none is.
    """

    k: Float[Array, "*LB K S H"]
    v: Float[Array, "*LB K S H"]
    positions: Int[Array, "*L B S"]

    @property
    def kv(self) -> KV:
        """One layer's as [B,S,K,H]."""
        return KV(*(_by_token(x) for x in (self.k, self.v)))

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
        positions = _put_row(self.positions, other.positions, row, 2)
        held = Contiguous(self.k, self.v).insert(row, Contiguous(other.k, other.v))
        return Ring(held.k, held.v, positions)

    def rewound(self, lengths_B: Int[Array, " B"]) -> "Ring":
        """Without the tokens beyond these lengths; those that they replaced do not come back."""
        kept = self.positions < lengths_B[:, None]
        return replace(self, positions=jnp.where(kept, self.positions, -1))

    def grown(self, bigger: "Kept", cache: "Cache") -> "Kept":
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


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class LayerCache:
    """What one block remembers: its own past, and the memory's keys, computed once."""

    own: Kept | None = None
    cross: KV | None = None


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Cache:
    """The state of decoding.

    Attributes:
      layers: a LayerCache for each block of the stack's pattern, arrays stacked over repeats.
      index: slots written so far, for all rows, or [B] where rows come and go.
      positions: position of the token in each slot; -1 where none is.
      valid: slots that hold a token.
      memory: of the cross-attended vectors all but these, or None without a memory.
    """

    layers: tuple[LayerCache, ...]
    index: Int[Array, "*rows"]
    positions: Int[Array, "B S"]
    valid: Bool[Array, "B S"]
    memory: Memory | None = None

    @classmethod
    def empty(
        cls, layers: tuple[LayerCache, ...], batch: int, slots: int, apart: bool = False
    ) -> "Cache":
        """One that holds nothing; `apart` if each row has a length of its own."""
        return cls(
            layers,
            jnp.zeros((batch,) if apart else (), jnp.int32),
            jnp.full((batch, slots), -1, jnp.int32),
            jnp.zeros((batch, slots), bool),
        )

    @property
    def slots(self) -> int:
        """How many tokens fit."""
        return self.positions.shape[1]

    @property
    def lengths(self) -> Int[Array, " B"]:
        """Tokens that each row holds."""
        return jnp.sum(self.valid, axis=1, dtype=jnp.int32)

    @property
    def reach(self) -> int | None:
        """Tokens back that every layer remembers; None for all."""
        return min((one.own.size for one in self.layers if isinstance(one.own, Ring)), default=None)

    def rewound(self, slots: Int[Array, "*rows"]) -> "Cache":
        """The first `slots` slots alone, of a cache that remembers all tokens in them."""
        index = jnp.broadcast_to(slots, self.index.shape).astype(jnp.int32)
        kept = self.valid & (jnp.arange(self.slots) < jnp.reshape(slots, (-1, 1)))
        short = replace(self, index=index, valid=kept)
        return short._of_each(lambda own: own.rewound(short.lengths))

    def grown(self, bigger: "Cache") -> "Cache":
        """The same tokens in a cache with more slots, which holds nothing yet."""
        layers = tuple(
            replace(old, own=old.own and new.own and old.own.grown(new.own, self))
            for old, new in zip(self.layers, bigger.layers, strict=True)
        )
        return replace(
            self,
            layers=layers,
            positions=_front(bigger.positions, self.positions),
            valid=_front(bigger.valid, self.valid),
        )

    def insert(self, row: Any, other: "Cache") -> "Cache":
        """The only row of another cache in the place of `row`; the others stay as they are.

        Raises:
          ValueError: rows that go in step, or another number of slots.
        """
        if not self.index.ndim or other.slots != self.slots:
            raise ValueError(
                f"a cache of {other.slots} slots cannot join one of {self.slots} whose index is "
                f"{self.index.shape}; make both with empty_cache(slots=...), this with apart=True"
            )

        def one(mine: LayerCache, new: LayerCache) -> LayerCache:
            own: Any = mine.own and mine.own.insert(row, new.own)  # pyright: ignore
            return LayerCache(own, _rows(mine.cross, new.cross, row, 4))

        return replace(
            self,
            layers=tuple(map(one, self.layers, other.layers)),
            index=self.index.at[row].set(jnp.reshape(other.index, ())),
            positions=_put_row(self.positions, other.positions, row, 2),
            valid=_put_row(self.valid, other.valid, row, 2),
            memory=_rows(self.memory, other.memory, row, 2),
        )

    def free(self, row: Any) -> "Cache":
        """A row that holds nothing any more."""
        there = jnp.arange(len(self.valid)) != row
        index = jnp.where(there, self.index, 0)
        short = replace(self, index=index, valid=self.valid & there[:, None])
        return short._of_each(lambda own: own.rewound(short.lengths))

    def _of_each(self, change: Any) -> "Cache":
        layers = (replace(one, own=one.own and change(one.own)) for one in self.layers)
        return replace(self, layers=tuple(layers))

    def write(self, positions_BT: Int[Array, "B T"], valid_BT: Bool[Array, "B T"]) -> "Cache":
        """Notes the tokens of this step; their keys are written by the layers.

        Where each row has a length of its own, one without a valid token stays as it is.
        """
        put, steps, at = jax.lax.dynamic_update_slice, positions_BT.shape[1], (0, self.index)
        if self.index.ndim:
            put, at = jax.vmap(put), (self.index,)
            steps = steps * jnp.any(valid_BT, axis=1)
        return replace(
            self,
            index=self.index + steps,
            positions=put(self.positions, positions_BT, at),
            valid=put(self.valid, valid_BT, at),
        )


def _places(inputs: Inputs) -> Places:
    if inputs.places is None:
        raise ValueError("a cache without places; call the Stack, which fills them in")
    return inputs.places


def _put_row(mine: jax.Array, other: jax.Array, row: Any, back: int) -> jax.Array:
    """The only row of `other` as row `row`; rows are the axis `back` from the end."""
    return jax.lax.dynamic_update_slice_in_dim(mine, other, row, mine.ndim - back)


def _rows(mine: Any, other: Any, row: Any, back: int) -> Any:
    return jax.tree.map(lambda a, b: _put_row(a, b, row, back), mine, other)


def _front(bigger: jax.Array, old: jax.Array) -> jax.Array:
    """The old slots at the front of the new ones."""
    return jax.lax.dynamic_update_slice(bigger, old, (0,) * old.ndim)


def _by_token(x: jax.Array) -> jax.Array:
    return (x if x.ndim == 4 else x[None]).swapaxes(1, 2)


def _by_head(x_BTKH: jax.Array, slots: jax.Array) -> jax.Array:
    x = x_BTKH.swapaxes(1, 2).astype(slots.dtype)
    return x if slots.ndim == 4 else x[0]
