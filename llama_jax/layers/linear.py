"""Weights whose axes are the letters of an equation.

`Einsum("BTD,DNH->BTNH", N=heads, H=head_dim)(x_BTD)` says the shape of the weight (D is read off
the input), its fan-in (D), its sharding (D, N, H) and that of the output (B, T, N, H).
"""

import math
import os
from collections.abc import Callable
from typing import Any, Protocol, runtime_checkable

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Float, Int

from llama_jax.axes import LETTERS, as_looked_up, shard, stages, within
from llama_jax.errors import UserError


class Lettered(struct.PyTreeNode, nn.meta.AxisMetadata):
    """A parameter with the letters of its axes; `nn.scan` puts the layer axis L in front."""

    value: Any
    letters: str = struct.field(pytree_node=False)

    def unbox(self) -> Any:
        """The bare array."""
        return self.value

    def replace_boxed(self, val: Any) -> "Lettered":
        """The same letters around another value."""
        return self.replace(value=val)

    def add_axis(self, index: int, params: dict[Any, Any]) -> "Lettered":
        """Called by `nn.scan` when it stacks layers."""
        letter = params[nn.PARTITION_NAME]
        return self.replace(letters=self.letters[:index] + letter + self.letters[index:])

    def remove_axis(self, index: int, params: dict[Any, Any]) -> "Lettered":
        """Called by `nn.scan` when it takes one layer."""
        return self.replace(letters=self.letters[:index] + self.letters[index + 1 :])


def lettered(init: Callable, letters: str) -> Callable:
    """An initializer whose result carries its letters."""
    return lambda *args: Lettered(init(*args), letters)


def weight(module: nn.Module, name: str, init: Callable, letters: str, shape: tuple) -> Any:
    """The parameter of a module, or what stands in its place.

    Args:
      module: whose parameter it is.
      name: what it is called there.
      init: draws the initial value.
      letters: a letter for each axis.
      shape: the sizes.
    """
    if module.has_variable("params", name):
        # Flax traces this to compare shapes; to trace a draw takes five times as long.
        init = nn.initializers.zeros
    return module.param(name, lettered(init, letters), shape, jnp.float32)


def fan_in_normal(fan_in: int, scale: float = 1.0) -> Callable:
    """Truncated normal with standard deviation `scale / sqrt(fan_in)` (LeCun), cut at two sigma."""
    # 0.8796... is the standard deviation of a unit normal cut at +-2; dividing by it restores the
    # asked one.
    return nn.initializers.truncated_normal(scale * fan_in**-0.5 / 0.87962566103423978)


class Einsum(nn.Module):
    """A linear map given by an equation "input,weight->output".

    Sizes of the weight's letters that the input lacks are given by letter, `F=64`; the others are
    read off the input. The weight is float32 and is cast to the input's dtype for the product.
    """

    equation: str
    bias: bool = False
    scale: float = 1.0
    # A size for each letter of `axes.LETTERS`.
    A: int = 0
    B: int = 0
    C: int = 0
    D: int = 0
    E: int = 0
    F: int = 0
    G: int = 0
    H: int = 0
    I: int = 0  # noqa: E741
    K: int = 0
    L: int = 0
    M: int = 0
    N: int = 0
    P: int = 0
    R: int = 0
    S: int = 0
    T: int = 0
    V: int = 0
    X: int = 0
    Y: int = 0

    def __post_init__(self):
        left, right, out = self._parts()
        for letter in left + right + out:
            if letter not in LETTERS:
                raise UserError(
                    f"{self.equation}: unknown axis letter {letter!r}; the alphabet is "
                    f"{''.join(LETTERS)}"
                )
        for letter in LETTERS:
            if getattr(self, letter) and (letter in left or letter not in right):
                why = "is read off the input" if letter in left else "is no letter of the weight"
                raise UserError(
                    f"{self.equation}: {letter}={getattr(self, letter)} is not needed, for "
                    f"{letter} {why}; leave it out"
                )
        super().__post_init__()

    @nn.nowrap  # it is read before Flax has set the module up, whose `tabulate` notes every method
    def _parts(self) -> tuple[str, str, str]:
        """The letters of the input, of the weight and of the output."""
        operands, out = self.equation.split("->")
        left, right = operands.split(",")
        return left, right, out

    @nn.compact
    def __call__(self, x: Array) -> Array:
        left, right, out = self._parts()
        if x.ndim != len(left):
            raise UserError(
                f"{self.equation}: the input has shape {x.shape}, {left!r} was expected"
            )
        sizes = dict(zip(left, x.shape, strict=True))
        sizes |= {letter: getattr(self, letter) for letter in right if letter not in sizes}
        if missing := [letter for letter in right if not sizes[letter]]:
            raise UserError(f"{self.equation}: give the sizes of {missing}, e.g. {missing[0]}=64")
        shape = tuple(sizes[letter] for letter in right)
        fan_in = math.prod(sizes[letter] for letter in right if letter not in out)
        w = weight(self, "w", fan_in_normal(fan_in, self.scale), right, shape)
        y = product(self.equation, x, w)
        if self.bias:
            letters = "".join(letter for letter in out if letter in right)
            b_shape = tuple(sizes[letter] for letter in letters)
            b = self.param("b", lettered(nn.initializers.zeros, letters), b_shape, jnp.float32)
            y = y + _spread(b, letters, out).astype(x.dtype)
        return shard(y, out)


@runtime_checkable
class Weight(Protocol):
    """What may stand in a weight's place, such as a quantised one: a pytree with a product."""

    def product(self, equation: str, x: Array, **options) -> Array:
        """The product with x in the dtype of x; `equation` and `options` as in `product`."""
        ...


def product(equation: str, x: Array, w: Array | Weight, **options) -> Array:
    """`jnp.einsum(equation, x, w)` in x's dtype: the one place where a weight meets activations.

    The rows of x are one axis where nothing splits them.

    XLA on a CPU transposes whole activations to sum a weight's gradient over two axes (B and T);
    over one axis it does not, which takes a fifth off a feed-forward's forward and backward pass.

    Args:
      equation: "left,right->out"; rows are the first letters that left and out have in common.
      x: activations.
      w: weight; where it shares a letter with the rows, they stay as they are.
        What is no array makes the product itself.
      **options: what `jnp.einsum` takes besides.

    Returns:
      An array whose axes are those of `out`.
    """
    if isinstance(w, Weight):
        return w.product(equation, x, **options)
    w = w.astype(x.dtype)
    operands, out = equation.split("->")
    left, right = operands.split(",")
    rows = os.path.commonprefix([left, out])
    mesh = jax.sharding.get_abstract_mesh()
    if len(rows) < 2 or set(rows) & set(right) or not (mesh.empty or mesh.size == 1):
        return jnp.einsum(equation, x, w, **options)
    inner = left[len(rows) :]  # summed
    if inner and right.startswith(inner) and out == rows + right[len(inner) :]:
        # One matrix product of what lies in memory already; einsum would turn a weight such as
        # NHD around for every call.
        size = math.prod(x.shape[len(rows) :])
        y = jnp.matmul(x.reshape(-1, size), w.reshape(size, -1), **options)
        return y.reshape(*x.shape[: len(rows)], *w.shape[len(inner) :])
    drop = len(rows) - 1
    folded = x.reshape(-1, *x.shape[len(rows) :])
    y = jnp.einsum(f"{left[drop:]},{right}->{out[drop:]}", folded, w, **options)
    return y.reshape(*x.shape[: len(rows)], *y.shape[1:])


def _spread(b: jax.Array, letters: str, out: str) -> jax.Array:
    """Gives the bias length-1 axes where `out` has letters that it lacks."""
    shape = iter(b.shape)
    return b.reshape([next(shape) if letter in letters else 1 for letter in out])


class Unembed(nn.Module):
    """The output layer of a model that has one of its own: vectors to logits."""

    vocab: int
    width: int

    def setup(self):
        init = fan_in_normal(self.width)
        self.w = weight(self, "w", init, "DV", (self.width, self.vocab))

    def __call__(self, x_BTD: Float[Array, "B T D"]) -> Float[Array, "B T V"]:
        """Logits."""
        return shard(product("BTD,DV->BTV", x_BTD, self.w), "BTV")


class Embed(nn.Module):
    """A table of vectors, looked up by id and usable as the output layer (`attend`)."""

    vocab: int
    width: int
    # Standard deviation 1/sqrt(D): rows of unit length, and tied logits of unit variance.
    scale: float = 1.0

    def setup(self):
        init = nn.initializers.normal(self.scale * self.width**-0.5)
        self.w = weight(self, "w", init, "VD", (self.vocab, self.width))

    def __call__(self, ids_BT: Int[Array, "B T"], dtype=jnp.float32) -> Float[Array, "B T D"]:
        """Looks ids up; an id outside the vocabulary gives NaN, never a neighbour's vector."""
        # From vectors of which every device has a part to rows of its own takes the partitioner two
        # steps where stages share rows too; asked for both at once, it makes everything whole.
        with within(stages()[0]):
            ids_BT = shard(ids_BT, "BT")
            x_BTD = jnp.take(self.w, ids_BT, axis=0, mode="fill")
            if x_BTD.dtype != jnp.dtype(dtype):  # cast what is sent
                x_BTD = as_looked_up(x_BTD.astype(dtype), "BTD")
            x_BTD = shard(x_BTD, "BTD")
        return shard(x_BTD, "BTD")

    def attend(self, x_BTD: Float[Array, "B T D"]) -> Float[Array, "B T V"]:
        """Logits against every row of the table."""
        return shard(product("BTD,VD->BTV", x_BTD, self.w), "BTV")
