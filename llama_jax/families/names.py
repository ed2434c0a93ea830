"""Which tensor of a file is which of our weights, and how its axes are turned.

A row says: our path, their name, their axes -> ours (einops' notation). Reading follows the arrow,
writing goes against it. The letters are those of `axes.py`; two letters in brackets are one axis of
the file. Lower-case r is the half of a rotary pair: some files hold a head's pairs side by side
(H r), ours hold first all first halves, then all second ones (r H).

    ours                   halves                             pairs side by side
    attn/q/w  [D,N,H]      self_attn.q_proj.weight (N H) D    attention.wq.weight (N H r) D
"""

import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Protocol

from einops import rearrange

from llama_jax.errors import UserError
from llama_jax.families.sizes import FeedForward, layers, scaled, sizes
from llama_jax.layers.attention import Attention
from llama_jax.layers.experts import Experts
from llama_jax.layers.stack import Stack
from llama_jax.models.decoder import Decoder

# Ours, theirs, "their axes -> our axes". {layer} is the number of a layer; "name[1]" is the second
# part of a tensor that holds several weights (`fused`).
Row = tuple[str, str, str]
Rows = tuple[Row, ...]


@dataclass(frozen=True)
class Table:
    """What a notation calls the tensors of a model, part by part, in the order of its files.

    Attributes:
      embed: the embedding.
      attention: weights of a layer's attention, with the norm before it.
      qk_norm: the norms of q and k, of layers that have them; () if the notation has no names.
      ffn: the feed-forward of a layer without experts, with the norm before it.
      experts: the same of a layer with them: router and experts; () if the notation has no names.
      shared: the expert for all tokens, of layers that have one, likewise.
      out: the last norm and the output layer.
      bias: the biases of q, k and v, of layers that have them; () if the notation has no names.
      out_bias: the bias of attention's output, likewise.
      ffn_bias: the biases of the feed-forward, likewise.
    """

    embed: Rows
    attention: Rows
    ffn: Rows
    out: Rows
    qk_norm: Rows = ()
    bias: Rows = ()
    out_bias: Rows = ()
    ffn_bias: Rows = ()
    experts: Rows = ()
    shared: Rows = ()

    @property
    def ends(self) -> tuple[str, str]:
        """The names of the embedding and of the output layer."""
        theirs = {ours: name for ours, name, _ in (*self.embed, *self.out)}
        return theirs["embed/w"], theirs["out/w"]

    @property
    def interleaved(self) -> bool:
        """Whether files hold the rotary pairs of q and k side by side."""
        return any("r)" in axes.split(" -> ")[0] for _, _, axes in self.attention)

    @property
    def layer(self) -> Rows:
        """The rows of a layer that has everything."""
        biases = (*self.bias, *self.out_bias)
        ffns = (*self.ffn, *self.ffn_bias, *self.experts, *self.shared)
        return tuple(dict.fromkeys((*self.attention, *biases, *self.qk_norm, *ffns)))

    def of(self, attention: Attention, ffn: FeedForward) -> Rows:
        """The rows of a layer of these parts.

        Raises:
          UserError: it has norms of q and k, biases or experts, and the notation has no names for
            them.
        """
        routed = isinstance(ffn, Experts)
        shared = ffn.shared if routed else None
        if shared is not None and (shared.bias or shared.hidden != ffn.hidden):
            raise UserError(
                f"the shared expert is {shared}, and other formats have one as wide as the others, "
                f"{ffn.hidden}, without biases"
            )
        parts = (
            (attention.bias, self.bias, "q, k and v of the model have biases"),
            (attention.out_bias, self.out_bias, "attention's output has a bias"),
            (scaled(attention), self.qk_norm, "the model normalises q and k"),
            (not routed, self.ffn, "the model has layers without experts"),
            (not routed and ffn.bias, self.ffn_bias, "the feed-forward of the model has biases"),
            (routed, self.experts, "the model has experts"),
            (shared is not None, self.shared, "the model has a shared expert"),
        )
        found: list[Rows] = []
        for there, rows, what in parts:
            if there and not rows:
                raise UserError(f"{what}; there are no names for these weights")
            found.append(rows if there else ())
        return sum(found, self.attention)

    def names(self, model: Decoder) -> "list[Name]":
        """Every tensor of a decoder; see `tensors`."""
        letters, every = sizes(model).letters, layers(model)
        own = [letters | _widths(ffn) for _, ffn in every]
        kinds = [self.of(*parts) for parts in every[: len(model.stack.pattern)]]
        ordered = [tuple(row for row in self.layer if row in kind) for kind in kinds]
        found = of_model(self.embed, letters, "decoder")
        found += of_layers(model.stack, ordered.__getitem__, own.__getitem__, "decoder/stack")
        found += of_model(self.out, letters, "decoder")
        return [name for name in found if not (model.tied and name.path == "decoder/out/w")]


@dataclass(frozen=True)
class Name:
    """One tensor of a file and one weight of ours (of one layer, if it is a layer's).

    Attributes:
      path: our name; a layer's weights are below "decoder/stack/layers/block_0", or below
        "decoder/stack/layer_7/block_0" if the layers are not stacked.
      layer: which of the stacked weights (a repeat of the pattern), or None.
      tensor: their name.
      axes: "theirs -> ours".
      shape: sizes of the tensor in the file.
      sizes: sizes of the letters.
      stacked: how many weights are stacked in ours, if `layer` is one of them.
    """

    path: str
    layer: int | None
    tensor: str
    axes: str
    shape: tuple[int, ...]
    sizes: tuple[tuple[str, int], ...]
    stacked: int = 0

    @property
    def letters(self) -> str:
        """A letter for each axis of the file's tensor: of (N H r) it is N, the slowest."""
        axes = self.axes.split(" -> ")[0].replace("1", "A")  # of a scalar that has an axis
        return re.sub(r"\((\w)[^)]*\)| ", r"\1", axes)

    @property
    def our_letters(self) -> str:
        """A letter for each axis of the weight (of one layer): of (r H) it is H, of (R X Y) A."""
        groups = re.findall(r"\(([^)]*)\)|(\w)", self.axes.split(" -> ")[1])
        letters = [re.sub("[ r]", "", group or letter) for group, letter in groups]
        return "".join(own if len(own) == 1 else "A" for own in letters)

    @property
    def our_shape(self) -> tuple[int, ...]:
        """The shape of the weight (of one layer)."""
        return _shape(self.axes.split(" -> ")[1], dict(self.sizes))

    def ours(self, tensor: Any) -> Any:
        """The weight, from the file's tensor, in numpy or in jax."""
        return rearrange(tensor, self.axes, **self._inside())

    def theirs(self, weight: Any) -> Any:
        """The file's tensor, from the weight."""
        left, right = self.axes.split(" -> ")
        return rearrange(weight, f"{right} -> {left}", **self._inside())

    def _inside(self) -> dict[str, int]:
        """Sizes of the letters that the pattern uses; einops refuses others."""
        return {letter: size for letter, size in self.sizes if letter in self.axes}


class Notation(Protocol):
    """Names of tensors: `Table` for a decoder, others for models of more parts."""

    @property
    def ends(self) -> tuple[str, str]:
        """The names of the embedding and of the output layer."""
        ...

    @property
    def interleaved(self) -> bool:
        """Whether files hold the rotary pairs of q and k side by side."""
        ...

    def names(self, model: Any) -> list[Name]:
        """Every tensor that a model has; see `tensors`."""
        ...


def tensors(model: Any, table: Notation) -> list[Name]:
    """Every tensor that a model has in a notation: part by part, each for all layers.

    Args:
      model: the config; if it is tied, its files need no output layer.
      table: the notation.

    Raises:
      UserError: a block for which there are no names.
    """
    found = table.names(model)
    first: dict[str, int] = {}
    for i, name in enumerate(found):
        first.setdefault(fused(name.tensor), i)
    return sorted(found, key=lambda name: first[fused(name.tensor)])  # parts beside each other


def of_model(rows: Rows, letters: dict[str, int], root: str) -> list[Name]:
    """The tensors of these rows, whose weights are below `root`."""
    return [named(row, letters, f"{root}/{row[0]}", row[1]) for row in rows]


def of_layers(
    stack: Stack,
    rows: Callable[[int], Rows],
    letters: Callable[[int], dict[str, int]],
    root: str,
    number: Callable[[int], int] = lambda layer: layer,
) -> list[Name]:
    """The tensors of a stack's layers, row by row, each for all layers that have it.

    Args:
      stack: the layers.
      rows: gives those of a block of the pattern, by its number.
      letters: gives the sizes of the letters there.
      root: what is above "layers" or "layer_0" in our names.
      number: gives what a layer is called in theirs.
    """
    period, found = len(stack.pattern), []
    mine = [rows(part) for part in range(period)]
    for row in dict.fromkeys(row for own in mine for row in own):
        for i in range(stack.layers):
            # Layer i is block `part` of repeat `repeat` of the pattern.
            repeat, part = divmod(i, period)
            if row not in mine[part]:
                continue
            place, layer = ("layers", repeat) if stack.scan else (f"layer_{repeat}", None)
            path = f"{root}/{place}/block_{part}/{row[0]}"
            one = named(row, letters(part), path, row[1].format(layer=number(i)), layer)
            found.append(one if layer is None else replace(one, stacked=stack.repeats))
    return found


def fused(tensor: str) -> str:
    """The name of a tensor in its file, of that of a part of it or of itself."""
    return re.sub(r"\[(rows )?\d\]$", "", tensor)


def _widths(ffn: FeedForward) -> dict[str, int]:
    """The sizes of the letters of a layer's feed-forward."""
    return {"F": ffn.hidden} | ({"E": ffn.experts} if isinstance(ffn, Experts) else {})


def named(
    row: Row, letters: dict[str, int], path: str, tensor: str, layer: int | None = None
) -> Name:
    """The tensor of a row: our path, its name and its shape, by the sizes of the letters."""
    axes, own = row[2], letters
    if "r" in axes:
        own = letters | {"H": letters["H"] // 2, "r": 2}
    shape = _shape(axes.split(" -> ")[0], own)
    return Name(path, layer, tensor, axes, shape, tuple(own.items()))


def _shape(axes: str, sizes: dict[str, int]) -> tuple[int, ...]:
    """The shape of "(N H) D"."""
    shape, group = [], None
    for part in axes.replace("(", "( ").replace(")", " )").split():
        if part == "(":
            group = 1
        elif part == ")":
            shape.append(group)
            group = None
        elif group is not None:
            group *= sizes[part]
        else:
            shape.append(1 if part == "1" else sizes[part])
    return tuple(shape)
