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


def _static(default: Any) -> Any:
    return field(default=default, metadata={"static": True})


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Mask:
    """Which keys each query sees: all conditions must hold.

    Attributes:
      causal: keys at positions up to the query's.
      window: keys nearer than this many positions (on both sides unless causal).
      chunk: keys of the query's own chunk of this length (Llama 4).
      parts: lengths of runs of keys that are summed apart and then together, so that a run without
        a valid key changes no bit of the result (XLA backends; it hides no key).
      prefix: [B]; keys at positions below it are seen whatever `causal` says (prefix language
        model).
      q_positions: [B, T]; default 0, 1, ... T-1.
      k_positions: [B, S]; default 0, 1, ... S-1.
      q_segments: [B, T]; with `k_segments`: equal segments only (packed documents).
      k_segments: [B, S].
      k_valid: [B, S]; keys that exist.
      allow: [B, T, S]; anything else, e.g. the tiles of an image.
    """

    causal: bool = _static(False)
    window: int | None = _static(None)
    chunk: int | None = _static(None)
    parts: tuple[int, ...] = _static(())
    prefix: Int[Array, " B"] | None = None
    q_positions: Int[Array, "B T"] | None = None
    k_positions: Int[Array, "B S"] | None = None
    q_segments: Int[Array, "B T"] | None = None
    k_segments: Int[Array, "B S"] | None = None
    k_valid: Bool[Array, "B S"] | None = None
    allow: Bool[Array, "B T S"] | None = None

    def __post_init__(self):
        for name in ("window", "chunk"):
            value = getattr(self, name)
            if isinstance(value, int) and value < 1:
                raise ValueError(
                    f"{name}={value} hides every key; use at least 1, or None for no {name}"
                )
        if (self.q_segments is None) != (self.k_segments is None):
            raise ValueError("segments of queries and of keys come together; give both or none")

    @property
    def local(self) -> bool:
        """Whether positions matter."""
        return self.causal or self.window is not None or self.chunk is not None

    @property
    def empty(self) -> bool:
        """Whether every query sees every key."""
        data = (f.name for f in fields(self) if not f.metadata.get("static"))
        return not self.local and all(getattr(self, name) is None for name in data)

    def __and__(self, other: "Mask") -> "Mask":
        """Both masks at once.

        Raises:
          ValueError: both give the same data field (other than k_valid and allow), or different
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
            elif f.name in ("k_valid", "allow"):
                merged[f.name] = a & b
            elif f.name == "chunk" and a == b:
                merged[f.name] = a
            else:
                raise ValueError(f"both masks give {f.name}; combine them before making the mask")
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
            k_positions=cut(self.k_positions),
            k_segments=cut(self.k_segments),
            k_valid=cut(self.k_valid),
            allow=cut(self.allow),
        )

    def dense(self, T: int, S: int) -> Bool[Array, "B T S"]:
        """The definition: True where query t may see key s; B is 1 where no row differs."""
        seen = jnp.ones((1, T, S), bool)
        if self.local:
            q = jnp.arange(T)[None] if self.q_positions is None else self.q_positions
            k = jnp.arange(S)[None] if self.k_positions is None else self.k_positions
            ahead = q[:, :, None] - k[:, None, :]
            if self.causal:
                past = ahead >= 0
                if self.prefix is not None:
                    past = past | (k < self.prefix[:, None])[:, None, :]
                seen = seen & past
            if self.window is not None:
                seen = seen & (jnp.abs(ahead) < self.window)
            if self.chunk is not None:
                seen = seen & (q[:, :, None] // self.chunk == k[:, None, :] // self.chunk)
        if self.q_segments is not None and self.k_segments is not None:
            seen = seen & (self.q_segments[:, :, None] == self.k_segments[:, None, :])
        if self.k_valid is not None:
            seen = seen & self.k_valid[:, None, :]
        if self.allow is not None:
            seen = seen & self.allow
        return seen
