"""A causal language model's weights inside of a larger model: its encoder, its decoder, or both.

    the causal model                      Multimodal(shared=True)
    decoder/embed          ->  embed
    decoder/stack, layer l ->  text/stack, layer l      the same blocks, now bidirectional
                           ->  decoder/stack, layer l   and cross-attention: see below
    decoder/norm           ->  text/norm, decoder/norm

So T5Gemma adapts Gemma (Zhang et al. 2025, arXiv:2504.06225). Cross-attention begins with the
self-attention of its layer where the shapes agree, and its norm with that one's norm. Behind a
gate that is zero (`Gated`) it adds nothing at first, so that the decoder writes what the causal
model did. Layers are counted, so either side may cut its stack into periods of its own.
"""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from llama_jax.errors import UserError
from llama_jax.models.decoder import Decoder

SIZES = ("heads", "kv_heads", "head_dim", "qk_norm", "bias", "out_bias", "hidden")
# No weight has another shape for these, but a model with others is another one.
WAYS = ("rope", "window", "chunk", "scale", "activation", "eps")
_LAYER = re.compile(r"(?:layers|layer_(\d+))/block_(\d+)/(.+)")
# What a layer may have beside those of the source, and what it begins with.
_ALIKE = {"cross": "attn", "cross_norm": "attn_norm"}


@dataclass(frozen=True)
class Piece:
    """Where a weight of the larger model is taken from.

    Attributes:
      path: the source's weight, "decoder/embed/w"; `{}` in it stands for the block.
      layers: the source's layers, as (block, repeat) each; () for what is not in a layer.
      stacked: whether the layers are one array.
    """

    path: str
    layers: tuple[tuple[int, int], ...] = ()
    stacked: bool = False

    def shape(self, saved: dict[str, Any]) -> tuple[int, ...] | None:
        """What it will have; None if the source has no such weight."""
        paths = [self.path.format(block) for block, _ in self.layers] or [self.path]
        if any(path not in saved for path in paths):
            return None
        shape = tuple(saved[paths[0]].shape)
        if not self.layers:
            return shape
        return (len(self.layers), *shape[1:]) if self.stacked else shape[1:]

    def take(self, found: dict[str, jax.Array]) -> jax.Array:
        """The weight itself, an array of its own."""
        if not self.layers:
            return jnp.copy(found[self.path])
        arrays = [found[self.path.format(block)] for block, _ in self.layers]
        whole = [repeat for _, repeat in self.layers] == list(range(len(arrays[0])))
        if self.stacked and whole and len({block for block, _ in self.layers}) == 1:
            return jnp.copy(arrays[0])
        parts = [array[repeat] for array, (_, repeat) in zip(arrays, self.layers, strict=True)]
        return jnp.stack(parts) if self.stacked else parts[0]


def pieces(model: Any, source: Decoder, wanted: Iterable[str]) -> dict[str, Piece]:
    """Where each weight is taken from, if from anywhere.

    Args:
      model: the larger model's config; its `causal` says where layers go.
      source: the causal model's, whose layers are in one array (`scan`).
      wanted: paths of the larger model's weights.
    """
    found = {}
    for path in wanted:
        for place, (first, stack) in model.causal.items():
            tower = place.removesuffix("/stack")
            if layer := _LAYER.fullmatch(path.removeprefix(f"{place}/")):
                found[path] = _layers(stack, first, source, layer)
            elif path.startswith(f"{tower}/"):
                found.setdefault(path, Piece(f"decoder/{path.removeprefix(f'{tower}/')}"))
        if path.startswith("embed/"):
            found[path] = Piece(f"decoder/{path}")
    return found


def _layers(stack: Any, first: int, source: Decoder, layer: re.Match[str]) -> Piece:
    """A weight of one layer, or of one in each period."""
    one, block, rest = layer.groups()
    ours, theirs = len(stack.pattern), len(source.stack.pattern)
    repeats = range(stack.repeats) if one is None else [int(one)]
    numbers = [divmod(first + repeat * ours + int(block), theirs) for repeat in repeats]
    part, _, leaf = rest.partition("/")
    path = "decoder/stack/layers/block_{}/" + f"{_ALIKE.get(part, part)}/{leaf}"
    return Piece(path, tuple((b, r) for r, b in numbers), one is None)


def check_sizes(name: str, model: Any, source: Decoder, place: Any) -> None:
    """Checks that every part that may hold a language model's weights has the source's sizes.

    Args:
      name: the run's, for messages.
      model: the larger model's config.
      source: the causal model's.
      place: where that is.

    Raises:
      UserError: one has not, or there is no such part.
    """
    places = getattr(model, "causal", {})
    if not places:
        raise UserError(
            f"{place} holds a language model, and the model of {name} has no text encoder and no "
            "decoder to begin with it"
        )
    wrong = [line for where in places for line in _unlike(model, where, source)]
    if wrong:
        raise UserError(
            f"{place} holds a model of other sizes than {name}: {'; '.join(wrong[:4])}; --set "
            "these fields, or leave init_from out"
        )


def _unlike(model: Any, where: str, source: Decoder) -> Iterator[str]:
    """The fields of a stack, and of what it is in, that are of another size than the source's."""
    first, stack = model.causal[where]
    part = getattr(model, where.partition("/")[0])
    for field in ("vocab", "width"):
        here, there = getattr(part, field, None), getattr(source, field)
        if here not in (there, None):
            yield f"model.{where.partition('/')[0]}.{field} is {here}, there {there}"
    name = f"model.{where.replace('/', '.')}"
    end = first + stack.layers
    goes_on = end in [before for before, _ in model.causal.values()]
    if end != source.stack.layers and not goes_on:
        yield f"{name} ends with layer {end}, there are {source.stack.layers}"
    yield from _differences(model, where, source, SIZES)


def otherwise(model: Any, source: Decoder) -> Iterator[str]:
    """What the larger model does with the source's weights in another way than the source."""
    for where in model.causal:
        yield from _differences(model, where, source, WAYS)


def _differences(model: Any, where: str, source: Decoder, fields: tuple[str, ...]) -> Iterator[str]:
    """Fields of a stack's attention and feed-forward that are not as in the source's layers."""
    first, stack = model.causal[where]
    for i, block in enumerate(stack.pattern):
        like = source.stack.pattern[(first + i) % len(source.stack.pattern)]
        for kind in ("attention", "ffn", "norm"):
            ours, theirs = (_ungated(getattr(b, kind, None)) for b in (block, like))
            for field in fields:
                here, there = getattr(ours, field, None), getattr(theirs, field, None)
                if here != there:
                    path = f"model.{where.replace('/', '.')}.pattern.{i}.{kind}.{field}"
                    yield f"{path} is {here}, there {there}"


def _ungated(part: Any) -> Any:
    return getattr(part, "part", part)
