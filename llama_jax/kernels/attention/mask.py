"""Mask: who may see whom in attention, described rather than built.

A mask has static structure (known when tracing, so that a kernel can skip whole blocks) and data
(arrays). `dense` is its definition; every backend is tested against it. Masks combine with `&`.

    Mask(causal=True, window=2), T = S = 4:      rows are queries, columns keys
        1 0 0 0
        1 1 0 0
        0 1 1 0
        0 0 1 1
"""

from dataclasses import dataclass, field, fields, replace
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int

from llama_jax.checked import check_fields
from llama_jax.errors import UserError


def _static(default: Any) -> Any:
    return field(default=default, metadata={"static": True})


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Mask:
    """Which keys each query sees: all conditions must hold.

    Attributes:
      causal: keys at positions up to the query's.
      prefix: int or [B]; keys at positions below it are seen whatever `causal` says (prefix
        language model).
      window: keys nearer than this many positions: a query sees itself and the window - 1 keys
        before it (and after it unless causal).
      chunk: keys of the query's own chunk of this length (Llama 4).
      parts: lengths of runs of keys that are summed apart and then together, so that a run without
        a valid key changes no bit of the result (XLA backends; it hides no key).
      q_segments: [B, T]; with `kv_segments`: equal segments only (packed documents).
      kv_segments: [B, S].
      q_positions: [B, T]; default 0, 1, ... T-1.
      kv_positions: [B, S]; default 0, 1, ... S-1.
      kv_valid: [B, S]; keys that exist.
      allow: [B, T, S]; anything else, e.g. the tiles of an image.
    """

    causal: bool = _static(False)
    prefix: Int[Array, " B"] | int | None = None
    window: int | None = _static(None)
    chunk: int | None = _static(None)
    q_segments: Int[Array, "B T"] | None = None
    kv_segments: Int[Array, "B S"] | None = None
    q_positions: Int[Array, "B T"] | None = None
    kv_positions: Int[Array, "B S"] | None = None
    kv_valid: Bool[Array, "B S"] | None = None
    allow: Bool[Array, "B T S"] | None = None
    parts: tuple[int, ...] = _static(())

    def __post_init__(self):
        check_fields(self, ("causal", "window", "chunk", "parts"))
        for name in ("window", "chunk"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UserError(
                    f"{name}={value} hides every key; use at least 1, or None for no {name}"
                )
        if (self.q_segments is None) != (self.kv_segments is None):
            raise UserError("segments of queries and of keys come together; give both or none")

    @property
    def local(self) -> bool:
        """Whether positions matter."""
        return self.causal or self.window is not None or self.chunk is not None

    @property
    def structure(self) -> "Mask":
        """The static part alone: hashable, known to the compiler."""
        return Mask(causal=self.causal, window=self.window, chunk=self.chunk, parts=self.parts)

    @property
    def empty(self) -> bool:
        """Whether every query sees every key."""
        return not self.local and not jax.tree.leaves(self)

    def __and__(self, other: "Mask") -> "Mask":
        """Both masks at once.

        Raises:
          UserError: both give the same data field (other than kv_valid and allow), or different
            chunks.
        """
        merged: dict[str, Any] = {"causal": self.causal or other.causal}
        for f in fields(self):
            a, b = getattr(self, f.name), getattr(other, f.name)
            if f.name == "causal":
                continue
            if f.name == "parts":
                merged["parts"] = a or b
            elif a is None or b is None:
                merged[f.name] = b if a is None else a
            elif f.name == "window":
                merged[f.name] = min(a, b)
            elif f.name in ("kv_valid", "allow"):
                merged[f.name] = a & b
            elif f.name == "chunk" and a == b:
                merged[f.name] = a
            else:
                raise UserError(f"both masks give {f.name}; combine them before making the mask")
        return Mask(**merged)

    def rows(self, start: Any, size: int, length: int) -> "Mask":
        """The mask of queries start ... start+size-1 of `length`; `start` may be traced."""

        def cut(x, axis=1):
            return None if x is None else jax.lax.dynamic_slice_in_dim(x, start, size, axis)

        positions = self.q_positions
        if self.local and positions is None:
            positions = jnp.arange(length, dtype=jnp.int32)[None]
        return replace(
            self,
            q_positions=cut(positions),
            q_segments=cut(self.q_segments),
            allow=cut(self.allow),
        )

    def keys(self, stop: int) -> "Mask":
        """The mask of the first `stop` keys."""

        def cut(x):
            return None if x is None else x[..., :stop]

        return replace(
            self,
            kv_positions=cut(self.kv_positions),
            kv_segments=cut(self.kv_segments),
            kv_valid=cut(self.kv_valid),
            allow=cut(self.allow),
        )

    def near(self, q: Any, kv: Any, prefix: Any = None) -> Any:
        """What causal, window, chunk and prefix say of positions q and kv, arrays that broadcast.

        NumPy's, jax's or a kernel's; `prefix` is that of the row. Returns None if they say nothing.
        """
        seen = []
        if self.causal:
            past = q >= kv
            seen.append(past if prefix is None else past | (kv < prefix))
        if self.window is not None:
            seen.append(q - kv < self.window)
            if not self.causal or prefix is not None:
                seen.append(kv - q < self.window)
        if self.chunk is not None:
            seen.append(_block_of(q, self.chunk) == _block_of(kv, self.chunk))
        return _all(seen)

    def dense(self, T: int, S: int) -> Bool[Array, "B T S"]:
        """The definition: True where query t may see key s; B is 1 where no row differs."""
        q = jnp.arange(T)[None] if self.q_positions is None else self.q_positions
        kv = jnp.arange(S)[None] if self.kv_positions is None else self.kv_positions
        prefix = None if self.prefix is None else jnp.reshape(self.prefix, (-1, 1, 1))
        seen = [self.near(q[:, :, None], kv[:, None, :], prefix)]
        if self.q_segments is not None and self.kv_segments is not None:
            seen.append(self.q_segments[:, :, None] == self.kv_segments[:, None, :])
        if self.kv_valid is not None:
            seen.append(self.kv_valid[:, None, :])
        if self.allow is not None:
            seen.append(self.allow)
        return _all([jnp.ones((1, T, S), bool), *(part for part in seen if part is not None)])


def _all(parts: list[Any]) -> Any:
    """The parts joined by and; None if there are none."""
    seen = None
    for part in parts:
        seen = part if seen is None else seen & part
    return seen


def _block_of(positions: Any, size: int) -> Any:
    """The number of the block of `size`; a shift where it can be, for a TPU divides slowly."""
    if size & (size - 1) == 0:
        return positions >> (size.bit_length() - 1)
    return positions // size
