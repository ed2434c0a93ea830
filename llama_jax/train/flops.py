"""FLOPs of a program, counted from its jaxpr, whatever the model.

    forward = counted(loss, params, batch, key)                       # as the program does it
    model = model_flops(loss, params, batch, key)                     # what MFU is about

XLA's own cost analysis counts the body of a loop once; here a scan counts as often as it runs.
What counts are matrix products and convolutions, 2 operations a multiply-add; the rest of a
Transformer is limited by memory. Attention counts by its mask's structure, not by how a backend
computes it (`kernels/flop_count.py`). Shapes are global: figures are of all devices together.

**Model FLOPs** are three times the forward pass by definition: 2 for every weight and token
forward, 4 backward, so 6 N a token with N the weights that take part in products (the embedding is
a lookup), and attention, causal counted half. Recomputation does not count (PaLM,
arXiv:2204.02311, appendix B; there attention is counted in full).
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.extend.core import ClosedJaxpr, Jaxpr
from jax.interpreters.partial_eval import dce_jaxpr

from llama_jax.axes import make_mesh, using
from llama_jax.kernels import flop_count as stand_in

# What an operation adds to [all, those of attention].
NONE, ALL, OF_ATTENTION = np.array([0.0, 0.0]), np.array([1.0, 0.0]), np.array([1.0, 1.0])


def of_step(params: Any, loss: Callable[..., Any], fields: dict[str, Any]) -> float | None:
    """Model FLOPs of a training step over a batch of these fields; None if they are not known.

    Counted as if for one device: a pipeline's bubbles are no work of the model.

    Args:
      params: anything with the shapes and types of the parameters, as a plan has them.
      loss: (params, batch, key) -> anything.
      fields: (shape, dtype) of the whole batch, by stream and name.
    """
    batch = {
        stream: {name: jax.ShapeDtypeStruct(*field) for name, field in named.items()}
        for stream, named in fields.items()
    }
    with using(make_mesh(devices=jax.local_devices()[:1])):
        key = jax.eval_shape(lambda: jax.random.key(0))
        shapes = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), params)
        try:
            return model_flops(loss, shapes, batch, key)
        except UnknownError:
            return None


class UnknownError(ValueError):
    """A program whose FLOPs depend on its data."""


def model_flops(loss: Callable[..., Any], *args: Any) -> float:
    """FLOPs of a training step of a model: three times those of its forward pass.

    Args:
      loss: the loss over the whole batch; trace it without a mesh or under one.
      args: arguments of the function, arrays or ShapeDtypeStructs.
    """
    return 3 * counted(loss, *args, what="model")


class Work(NamedTuple):
    """FLOPs of a program, of all devices together.

    Attributes:
      total: all of them.
      attention: share of attention's two products (five, backward), which are in `total`.
    """

    total: float
    attention: float


def counted(fn: Callable[..., Any], *args: Any, what: stand_in.What = "work") -> float:
    """FLOPs of `fn(*args)`, of all devices together; nothing is computed.

    Args:
      fn: what jax can trace; a whole train step gives what the hardware must do, remat included.
      args: arrays or ShapeDtypeStructs.
      what: see `kernels.flop_count.counting`.

    Raises:
      UnknownError: a `while` loop with products in it, for nobody knows how often it runs.
    """
    return work(fn, *args, what=what).total


def work(fn: Callable[..., Any], *args: Any, what: stand_in.What = "work") -> Work:
    """As `counted`, attention apart."""
    with stand_in.counting(what):
        # A function of its own: jax must not find in its cache what was traced without counting.
        closed = jax.make_jaxpr(lambda *args: fn(*args))(*args)
    total, attention = _of(_used(closed.jaxpr)).tolist()
    return Work(total, attention)


def _used(jaxpr: Jaxpr) -> Jaxpr:
    """Without what XLA drops: a pass of which only the counts are used, say."""
    return dce_jaxpr(jaxpr, [True] * len(jaxpr.outvars))[0]


def _of(jaxpr: Jaxpr) -> np.ndarray:
    """[2]: all, and those of attention."""
    return sum((_equation(eqn) for eqn in jaxpr.eqns), NONE)


def _equation(eqn: Any) -> np.ndarray:
    name, params = eqn.primitive.name, eqn.params
    if name in ("dot_general", "conv_general_dilated", "ragged_dot_general"):
        return _PRODUCTS[name](eqn) * ALL
    called = params.get("name")
    if isinstance(called, str) and called.startswith(stand_in.NAME + "_"):
        return stand_in.cost(called, eqn.invars[0].aval) * OF_ATTENTION
    if name == "pallas_call":
        return _pallas(params)
    inner = [_of(part) for part in _inside(params)]
    if name == "scan":
        return params["length"] * sum(inner, NONE)
    if name == "cond":  # the dearest branch
        return max(inner, key=lambda branch: branch[0], default=NONE)
    if name == "while" and any(part[0] for part in inner):
        raise UnknownError(
            "a `while` loop with matrix products: how often it runs is not known before it does; "
            "use a scan or a fori_loop with fixed bounds"
        )
    if name == "shard_map":  # its body has the shapes of one device
        axes = params["newly_manual_axes"]
        return sum(inner, NONE) * math.prod(params["mesh"].shape[axis] for axis in axes)
    return sum(inner, NONE)


def _inside(params: dict[str, Any]) -> list[Jaxpr]:
    """The programs among an equation's parameters."""
    found = []
    for value in params.values():
        for part in value if isinstance(value, tuple | list) else (value,):
            if isinstance(part, ClosedJaxpr):
                found.append(part.jaxpr)
            elif isinstance(part, Jaxpr):
                found.append(part)
    return found


def _pallas(params: dict[str, Any]) -> np.ndarray:
    estimate = params.get("cost_estimate")
    if estimate is not None:
        return estimate.flops * ALL
    steps = math.prod(params["grid_mapping"].grid)
    return steps * sum((_of(part) for part in _inside(params)), NONE)


def _dot(eqn: Any) -> float:
    (contracted, _), _ = eqn.params["dimension_numbers"]
    left = eqn.invars[0].aval.shape
    return 2.0 * eqn.outvars[0].aval.size * math.prod(left[axis] for axis in contracted)


def _ragged(eqn: Any) -> float:
    """Every row of the left side meets one group of the right side's, forward and backward."""
    numbers = eqn.params["ragged_dot_dimension_numbers"]
    (contracted, _), _ = numbers.dot_dimension_numbers
    left, groups = (eqn.invars[i].aval.shape for i in (0, 2))
    pairs = 2.0 * eqn.outvars[0].aval.size * math.prod(left[axis] for axis in contracted)
    # Where rows are summed, each group has a result of its own, of its rows alone.
    summed = set(numbers.lhs_ragged_dimensions) & set(contracted)
    return pairs / groups[-1] if summed else pairs


def _conv(eqn: Any) -> float:
    """The kernel's other axes than its output channels meet every entry of the result."""
    kernel = eqn.invars[1].aval
    channels = kernel.shape[eqn.params["dimension_numbers"].rhs_spec[0]]
    return 2.0 * eqn.outvars[0].aval.size * kernel.size / channels


_PRODUCTS: dict[str, Callable[[Any], float]] = {
    "dot_general": _dot,
    "conv_general_dilated": _conv,
    "ragged_dot_general": _ragged,
}
