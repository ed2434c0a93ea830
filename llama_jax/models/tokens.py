"""Tokens: what every encoder gives and every fusion and decoder takes."""

from dataclasses import dataclass, field, replace

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from llama_jax.errors import UserError
from llama_jax.layers.inputs import Inputs, Memory


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Tokens:
    """A batch of sequences of vectors, of any modality.

    Attributes:
      x: the vectors.
      valid: which tokens exist; a missing modality is a row of False.
      positions: coordinates for rotary embedding, (t,) for text and (t, y, x) for images and video.
      segments: document of each token in packed rows; tokens of other segments are not seen.
      parts: lengths of the streams that were joined into this one; () for a single one.
    """

    x: Float[Array, "B T D"]
    valid: Bool[Array, "B T"]
    positions: Int[Array, "B T A"]
    segments: Int[Array, "B T"] | None = None
    parts: tuple[int, ...] = field(default=(), metadata={"static": True})

    def with_x(self, x: Float[Array, "B T D"]) -> "Tokens":
        """The same tokens after a layer."""
        return replace(self, x=x)

    @property
    def inputs(self) -> Inputs:
        """What the blocks of a stack are told of them."""
        return Inputs(self.positions, self.valid, self.segments, parts=self.parts)

    @property
    def memory(self) -> Memory:
        """What cross-attention reads of them."""
        return Memory(self.x, self.valid, parts=self.parts)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Placed:
    """Vectors that stand in the place of tokens: pictures in a text, a prefix, a soft prompt.

    Attributes:
      x: the vectors.
      at: the place of each in its row, or in the text of which a row is a piece (`within`); one
        outside of the row is left out.
    """

    x: Float[Array, "B M D"]
    at: Int[Array, "B M"]

    def over(self, x_BTD: Float[Array, "B T D"]) -> Float[Array, "B T D"]:
        """Vectors of a text with these among them."""
        at = jnp.where(self.at < 0, x_BTD.shape[1], self.at)
        return x_BTD.at[jnp.arange(len(at))[:, None], at].set(
            self.x.astype(x_BTD.dtype), mode="drop"
        )

    def within(
        self, before_B: Int[Array, " B"] | int, valid_BT: Bool[Array, "B T"] | None, length: int
    ) -> "Placed":
        """Those that stand in a piece of a text, by their places there.

        Args:
          before_B: tokens of the text before the piece.
          valid_BT: tokens of the piece that exist, after its padding; all by default.
          length: tokens of the piece, T.
        """
        padding_B = 0 if valid_BT is None else length - jnp.sum(valid_BT, axis=1)
        before_B1 = jnp.reshape(jnp.asarray(before_B), (-1, 1))
        there = self.at >= before_B1
        moved = self.at - before_B1 + jnp.reshape(jnp.asarray(padding_B), (-1, 1))
        return replace(self, at=jnp.where(there, moved, -1))


def text_positions(batch: int, length: int) -> Int[Array, "B T 1"]:
    """0, 1, 2, ... for every row."""
    return jnp.broadcast_to(jnp.arange(length, dtype=jnp.int32)[None, :, None], (batch, length, 1))


def repeat_rows(tokens: Tokens, rows: int) -> Tokens:
    """Repeats each row so that `rows` consecutive ones share it (several questions of one image).

    Raises:
      UserError: `rows` is not a multiple of the rows there are.
    """
    have = tokens.x.shape[0]
    if rows % have:
        raise UserError(
            f"{have} images cannot be shared evenly by {rows} rows of text; {rows} must be a "
            "multiple"
        )
    return jax.tree.map(lambda a: jnp.repeat(a, rows // have, axis=0), tokens)


def concatenate(parts: list[Tokens]) -> Tokens:
    """Puts streams one after another, [B, T1 + T2 + ..., D]; shorter positions are filled with 0.

    Raises:
      UserError: packed rows, whose segments have no meaning in another stream.
    """
    if len(parts) == 1:
        return parts[0]
    if any(part.segments is not None for part in parts):
        raise UserError("packed rows (segments) cannot be joined; give one document a row")
    axes = max(part.positions.shape[-1] for part in parts)

    def pad(positions):
        return jnp.pad(positions, ((0, 0), (0, 0), (0, axes - positions.shape[-1])))

    return Tokens(
        x=jnp.concatenate([part.x for part in parts], axis=1),
        valid=jnp.concatenate([part.valid for part in parts], axis=1),
        positions=jnp.concatenate([pad(part.positions) for part in parts], axis=1),
        parts=tuple(part.x.shape[1] for part in parts),
    )


def pool(tokens: Tokens) -> Float[Array, "B D"]:
    """The mean of the valid tokens; zeros where there are none."""
    weight = tokens.valid[..., None].astype(tokens.x.dtype)
    return jnp.sum(tokens.x * weight, axis=1) / jnp.maximum(jnp.sum(weight, axis=1), 1)
