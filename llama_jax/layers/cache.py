"""The cache of a decoder as an explicit pytree: an argument and a result, never hidden.

What each layer keeps is a type of `layers/slots.py`.
"""

from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
from jax.core import Tracer
from jaxtyping import Array, Bool, Int

from llama_jax.errors import UserError
from llama_jax.layers.inputs import Memory
from llama_jax.layers.slots import KV, Kept, Ring, front, put_row


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
      memory: what is known of the cross-attended vectors beside their keys and values, or None
        without a memory.
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
            replace(
                old, own=old.own and new.own and old.own.grown(new.own, self.positions, self.valid)
            )
            for old, new in zip(self.layers, bigger.layers, strict=True)
        )
        return replace(
            self,
            layers=layers,
            positions=front(bigger.positions, self.positions),
            valid=front(bigger.valid, self.valid),
        )

    def insert(self, row: Any, other: "Cache") -> "Cache":
        """The only row of another cache in the place of `row`; the others stay as they are.

        Raises:
          UserError: rows that go in step, or another number of slots.
        """
        if not self.index.ndim or other.slots != self.slots:
            raise UserError(
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
            positions=put_row(self.positions, other.positions, row, 2),
            valid=put_row(self.valid, other.valid, row, 2),
            memory=_rows(self.memory, other.memory, row, 2),
        )

    def free(self, row: Any) -> "Cache":
        """A row that holds nothing any more."""
        there = jnp.arange(len(self.valid)) != row
        index = jnp.where(there, self.index, 0)
        short = replace(self, index=index, valid=self.valid & there[:, None])
        return short._of_each(lambda own: own.rewound(short.lengths))

    def taken(self, rows_B: Int[Array, " B"]) -> "Cache":
        """The past of these rows, of a cache whose rows go in step and share what else there is.

        That is so of the beams of one row: the same memory, the same places.
        """
        return self._of_each(lambda own: own.taken(rows_B))

    def _of_each(self, change: Any) -> "Cache":
        layers = (replace(one, own=one.own and change(one.own)) for one in self.layers)
        return replace(self, layers=tuple(layers))

    def write(self, positions_BT: Int[Array, "B T"], valid_BT: Bool[Array, "B T"]) -> "Cache":
        """Notes the tokens of this step; their keys are written by the layers.

        Where each row has a length of its own, one without a valid token stays as it is.

        Raises:
          UserError: more tokens than slots; of a cache that is traced, how full it is is not known.
        """
        known = not (self.index.ndim or isinstance(self.index, Tracer))
        used, T = int(self.index) if known else 0, positions_BT.shape[1]
        if used + T > self.slots:
            raise UserError(
                f"{T} tokens do not fit into a cache of {self.slots} slots"
                + f", of which {used} are taken" * bool(used)
                + f"; make it with empty_cache(batch, slots={used + T}), or more"
            )
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


def _rows(mine: Any, other: Any, row: Any, back: int) -> Any:
    return jax.tree.map(lambda a, b: put_row(a, b, row, back), mine, other)
