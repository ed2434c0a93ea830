"""The cache of a decoder as an explicit pytree: an argument and a result, never hidden.

What a layer keeps is a type: `Contiguous` has a slot for every token, `Ring` for those that a
window or a chunk can still show. Keys and values lie head by head, the order in which one query
reads them: stored as [B,S,K,H] they would be copied into this order for every token, and so would
a batch of one as [1,K,S,H], for XLA drops that axis in products; it is stored as [K,S,H]. Stacked
layers put an L in front.
"""

from dataclasses import dataclass, replace

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
            start = jnp.reshape(index, ())
            return jax.lax.dynamic_update_slice_in_dim(slots, x, start, slots.ndim - 2)

        return Contiguous(put(self.k, new.k), put(self.v, new.v))

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


def _by_token(x: jax.Array) -> jax.Array:
    return (x if x.ndim == 4 else x[None]).swapaxes(1, 2)


def _by_head(x_BTKH: jax.Array, slots: jax.Array) -> jax.Array:
    x = x_BTKH.swapaxes(1, 2).astype(slots.dtype)
    return x if slots.ndim == 4 else x[0]
