"""TrainState, and the plan of it: shapes and shardings of every leaf before any array exists."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from flax import struct
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from llama_jax import seeds
from llama_jax.axes import LETTERS, Rules, weight_sharding
from llama_jax.errors import UserError
from llama_jax.layers.linear import Lettered
from llama_jax.optim.optimizer import Optimizer
from llama_jax.optim.precision import stored_as, whole
from llama_jax.trees import path_name


class TrainState(struct.PyTreeNode):
    """All that one step hands to the next.

    Attributes:
      step: int32, steps done.
      skipped: int32, how many of them left the weights alone because something was not finite.
      skipped_in_row: int32, how many of the last steps did.
      params: weights, a nested dict; float32, or matrices bfloat16 (`Run.param_dtype`).
      opt_state: optax's; the moments are split over the mesh as their weights are.
      key: uint32[2], the data of the key from which step n takes `fold_in(key, n)`. It never
        changes, and as plain numbers it is saved like any array.
      ema: float32, a moving average of the weights over the steps, split as they are; or None.
    """

    step: Any
    skipped: Any
    skipped_in_row: Any
    params: Any
    opt_state: Any
    key: Any
    ema: Any = None

    @property
    def best(self) -> Any:
        """The weights to evaluate and to use: the average if there is one."""
        return self.params if self.ema is None else self.ema

    def begun(self, params: Any) -> "TrainState":
        """The state with other weights to begin from."""
        ema = None if self.ema is None else jax.tree.map(jnp.copy, whole(params))
        params = jax.tree.map(lambda new, old: new.astype(old.dtype), params, self.params)
        return self.replace(params=params, ema=ema)


# Letters of a batch: rows, images, and lengths.
OF_BATCHES = "BITS"


@dataclass(frozen=True)
class Plan:
    """What a state will look like on a mesh, and how to make it.

    Attributes:
      abstract: a TrainState of ShapeDtypeStructs, each with its sharding.
      letters: the axes of every weight, by its path name; saved with each checkpoint, so that it
        can be read onto a mesh without building the model.
      transform: the optax chain.
      init: seed -> TrainState, made in place on the mesh: no device ever holds it whole.
      trains: a tree of bool, False for the weights that the optimizer freezes; None if there are
        none.
    """

    abstract: TrainState
    letters: dict[str, str]
    transform: optax.GradientTransformation
    init: Callable[[int], TrainState]
    trains: Any = None

    @property
    def shardings(self) -> TrainState:
        """A TrainState of NamedShardings."""
        return jax.tree.map(lambda leaf: leaf.sharding, self.abstract)

    @property
    def parameters(self) -> int:
        """How many numbers the model learns."""
        return sum(leaf.size for leaf in jax.tree.leaves(self.abstract.params))

    @property
    def bytes(self) -> int:
        """Size of the state, and so of a checkpoint."""
        return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(self.abstract))


def plan(
    init_params: Callable[[jax.Array], Any],
    optimizer: Optimizer,
    steps: int,
    mesh: Mesh,
    rules: Rules,
    ema: bool = False,
    dtype: str = "float32",
) -> Plan:
    """Plans the state of a run; no array is made.

    Args:
      init_params: key -> nested dict of `Lettered` parameters.
      optimizer: config of the optimizer.
      steps: how many steps the whole run has, for the schedule.
      mesh: where the state will be.
      rules: which mesh axis splits which letter.
      ema: whether an average of the weights is kept.
      dtype: what matrices are kept in.

    Raises:
      UserError: an axis of a weight or an activation that the mesh cannot divide.
    """
    # Traced once for all that follows; inlined, so that `init` is the program it would be without.
    init_params = jax.jit(init_params, inline=True)

    def keys(words_2):  # of the same type in every trace
        return jax.random.split(seeds.key(words_2))

    try:
        # Traced, not run: the devices of an ahead-of-time mesh cannot make a key.
        boxed_params = jax.eval_shape(lambda: init_params(keys(seeds.words(0))[0]))
    except ValueError as error:
        if "divisible" not in str(error):
            raise
        raise UserError(str(error)) from None
    transform = optimizer.build(steps, boxed_params)

    def init(words_2) -> TrainState:
        k_params, k_steps = keys(words_2)
        params = stored_as(init_params(k_params), dtype)
        zero = jnp.zeros((), jnp.int32)
        # optax maps over the boxes, so that moments carry the letters of their weights.
        opt_state = transform.init(params)
        average = jax.tree.map(jnp.copy, whole(params)) if ema else None
        key = jax.random.key_data(k_steps)
        return TrainState(zero, zero, zero, params, opt_state, key, average)

    abstract = jax.tree_util.tree_map_with_path(
        lambda path, leaf: _placed(path, leaf, mesh, rules),
        jax.eval_shape(init, seeds.words(0)),
        is_leaf=_is_box,
    )
    boxes, _ = jax.tree_util.tree_flatten_with_path(boxed_params, is_leaf=_is_box)
    letters = {path_name(path): box.letters for path, box in boxes}
    check_axes("".join(letters.values()), mesh, rules)
    shardings = jax.tree.map(lambda leaf: leaf.sharding, abstract)
    place = jax.jit(lambda words_2: nn.meta.unbox(init(words_2)), out_shardings=shardings)
    trains = optimizer.trains(boxed_params)
    return Plan(abstract, letters, transform, lambda seed: place(seeds.words(seed)), trains)


def check_axes(letters: str, mesh: Mesh, rules: Rules) -> None:
    """Checks that every mesh axis splits something of a model with weights of these letters.

    Raises:
      UserError: one that splits nothing.
    """
    for axis, size in mesh.shape.items():
        # An axis that has letters of weights is for these, though batches may be split over it too.
        split = rules.of_weights(axis) or rules.letters(axis)
        if size > 1 and not split & {*letters, *OF_BATCHES}:
            what = ", ".join(f"{letter} ({LETTERS[letter]})" for letter in sorted(split))
            but = f" but {what}, which the model has not" if split else ""
            raise UserError(
                f"the mesh has {axis}={size} and the rules split nothing over {axis!r}{but}, so "
                f"these devices would be of no use; give --mesh.{axis} 1, or rules that "
                "name it"
            )


def _is_box(x: Any) -> bool:
    return isinstance(x, Lettered)


def _placed(path, leaf: Any, mesh: Mesh, rules: Rules) -> Any:
    """The shape with its sharding; what has no letters (counters, keys) is on every device.

    A restored scalar without a sharding would sit on one device and fail the first step.
    """
    if not _is_box(leaf):
        return jax.ShapeDtypeStruct(
            leaf.shape, leaf.dtype, sharding=NamedSharding(mesh, PartitionSpec())
        )
    value = leaf.value
    if isinstance(value, optax.MaskedNode):  # a weight that this part of the optimizer leaves alone
        return value
    try:
        sharding = weight_sharding(leaf.letters, value.shape, mesh, rules)
    except ValueError as error:
        raise UserError(f"{path_name(path)}: {error}") from None
    return jax.ShapeDtypeStruct(value.shape, value.dtype, sharding=sharding)
