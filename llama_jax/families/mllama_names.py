"""Llama 3.2-Vision's names of tensors: what notations of it have in common."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from llama_jax.families.names import Name, Rows, of_layers, of_model
from llama_jax.families.sizes import sizes
from llama_jax.layers.block import inner
from llama_jax.layers.stack import Stack
from llama_jax.models.cross_vision import CrossVision
from llama_jax.models.decoder import Decoder


@dataclass(frozen=True)
class MllamaNames:
    """The names of a decoder with layers that look, and of its tower; see `names.Notation`.

    Attributes:
      ends: the names of the embedding and of the output layer.
      embed: the embedding.
      extra: the ids after the vocabulary, which are read and never written.
      own: a layer of self-attention.
      cross: a layer that looks.
      out: the last norm and the output layer.
      tower: what the tower has once.
      tiles: vectors that tell which tile it is.
      projection: what comes out of the tower.
      towers: the names of the tower's two stacks.
      block: gives the rows of a layer of a stack, by the stack's name and whether it is gated.
      apart: whether the two kinds of the decoder's layers are numbered apart.
      interleaved: whether files hold the rotary pairs of q and k side by side.
    """

    ends: tuple[str, str]
    embed: Rows
    extra: Rows
    own: Rows
    cross: Rows
    out: Rows
    tower: Rows
    tiles: Rows
    projection: Rows
    towers: tuple[str, str]
    block: Callable[[str, bool], Rows]
    apart: bool = False
    interleaved: bool = False

    def names(self, model: CrossVision) -> list[Name]:
        """Every tensor of a model; see `names.tensors`."""
        decoder, vision = model.decoder, model.vision
        letters = sizes(alone(decoder)).letters
        looks = [block.attention is None for block in blocks(decoder.stack)]
        every = looks * decoder.stack.repeats

        def number(layer: int) -> int:
            return every[:layer].count(every[layer]) if self.apart else layer

        found = of_model(self.embed, letters, "decoder")
        found += of_model(self.extra, letters | {"V": model.extra}, "extra")
        found += of_layers(
            decoder.stack,
            lambda part: self.cross if looks[part] else self.own,
            lambda part: letters,
            "decoder/stack",
            number,
        )
        found += of_model(self.out, letters, "decoder")

        tables, _ = vision.tables.shape(vision.tiles)
        seen = {"D": vision.width, "R": 3, "X": vision.patch, "Y": vision.patch, "A": tables}
        seen |= {"M": vision.tiles, "P": vision.tokens}
        found += of_model(self.tower, seen, "vision")
        found += of_model(self.tiles, seen | {"P": 1}, "vision")
        for name, theirs in zip(("local", "across"), self.towers, strict=True):
            rows = self.block(theirs, name == "across")
            found += _stack(getattr(vision, name), rows, f"vision/{name}", vision.width)
        width = vision.width * (len(vision.kept) + 1)
        return found + of_model(self.projection, {"D": vision.out, "A": width}, "vision")


def _stack(stack: Stack, rows: Rows, root: str, width: int) -> list[Name]:
    attention, ffn = (inner(part) for part in (blocks(stack)[0].attention, blocks(stack)[0].ffn))
    letters = {"D": width, "N": attention.heads, "H": attention.head_dim, "F": ffn.hidden}
    return of_layers(stack, lambda part: rows, lambda part: letters, root)


def blocks(stack: Stack) -> tuple[Any, ...]:
    """The blocks of a stack's pattern, of whatever parts."""
    return stack.pattern


def alone(decoder: Decoder) -> Decoder:
    """The decoder without its cross-attention layers, which is a Llama 3."""
    own = tuple(block for block in blocks(decoder.stack) if block.attention is not None)
    return replace(decoder, stack=replace(decoder.stack, pattern=own))
