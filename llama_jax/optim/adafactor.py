"""Adafactor's moments, sharded like their weights: optax on every matrix by itself.

optax factors the two longest axes of an array. Of a weight [L,D,N,H] these may be two that are one
side of its matrix, or the layers. Here the letters say what the matrix is, so that

    LDNH    is seen as    [L, D, N x H], L matrices
    moments               rows [L, D] with letters LD, columns [L, N x H] with letters LN
"""

import math
from typing import Any

import jax
import optax

from llama_jax.layers.linear import Lettered
from llama_jax.optim.parameters import letters_of, many, sides


def each_matrix(
    factored: optax.GradientTransformation, then: optax.GradientTransformation, boxed: Any
) -> optax.GradientTransformation:
    """`factored`, and `then` on its result, for every matrix (or vector) by itself.

    Args:
      factored: `optax.scale_by_factored_rms`.
      then: a transformation without a state.
      boxed: the parameters, for their letters.

    Returns:
      A transformation whose state has an `optax.FactoredState` in the place of each parameter; if
      it is initialised with boxes, its moments are boxes too.
    """
    letters = letters_of(boxed)

    def mapped(f: Any, axes: str) -> Any:
        for _ in range(many(axes)):
            f = jax.vmap(f)
        return f

    def init(params):
        def one(axes, param):
            value = param.value if isinstance(param, Lettered) else param
            state = mapped(factored.init, axes)(_view(axes, value))
            return _boxes(state, axes, value.shape) if value is not param else state

        return jax.tree.map(one, letters, params)

    def step(grad, state, param) -> Any:
        grad, state = factored.update(grad, state, param)
        return then.update(grad, then.init(param), param)[0], state

    def update(updates, state, params=None):
        def one(axes, grad, moments, param):
            new, moments = mapped(step, axes)(_view(axes, grad), moments, _view(axes, param))
            return new.reshape(grad.shape), moments

        both = jax.tree.map(one, letters, updates, state, params)
        ours = jax.tree.structure(letters)
        pairs = ours.flatten_up_to(both)
        return ours.unflatten([new for new, _ in pairs]), ours.unflatten([m for _, m in pairs])

    return optax.GradientTransformation(init, update)


def _view(axes: str, x: jax.Array) -> jax.Array:
    """The array as [layers, rows, columns]."""
    return x.reshape(*x.shape[: many(axes)], *_lengths(axes, x.shape))


def _lengths(axes: str, shape: tuple[int, ...]) -> list[int]:
    return [math.prod(shape[axis] for axis in side) for side in sides(axes)]


def _boxes(state: Any, axes: str, shape: tuple[int, ...]) -> Any:
    """The state with letters; a side of several axes is split as the first of them is."""
    count, lengths = many(axes), _lengths(axes, shape)
    own = [axes[side[0]] for side in sides(axes)]
    if list(state.v.shape[count:]) == lengths:
        return state._replace(v=Lettered(state.v, axes[:count] + "".join(own)))
    # Rows are what is left when optax takes the mean over the longer side.
    row = int(lengths[1] < lengths[0])
    letters = axes[:count] + own[row], axes[:count] + own[1 - row]
    return state._replace(
        v_row=Lettered(state.v_row, letters[0]), v_col=Lettered(state.v_col, letters[1])
    )
