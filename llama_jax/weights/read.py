"""A checkpoint's tensors into a model's parameters, one at a time.

Host memory beyond the parameters: the largest tensor, as it is in the file, and at most `OVERHEAD`
for what is compiled (40 to 60 MB were measured; tests/weights/test_memory.py holds it to that).
Tensors are turned, split and cast on the devices, of which each gets only its own part. On a CPU
the parameters are host memory too; they are filled in place, and those of single layers are turned
by NumPy (`host`).
"""

import dataclasses
import math
from collections import deque
from collections.abc import Callable, Iterable
from functools import lru_cache, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding

from llama_jax.axes import FSDP_TENSOR, Rules, make_mesh, using, weight_sharding
from llama_jax.families.names import Name, Notation, tensors
from llama_jax.formats.source import Source
from llama_jax.layers.linear import Lettered
from llama_jax.models.decoder import Decoder
from llama_jax.trees import flat, nested
from llama_jax.weights.host import arrays, not_finite

OVERHEAD = 96 * 2**20  # bytes
AHEAD = 2**22  # numbers, 16 MB of float32: a few tensors of a small model
STACKED = "stack/layers/"  # before the path of a weight that all layers have in one array


def read(
    model: Any,
    source: Source,
    table: Notation,
    mesh: Mesh | None = None,
    rules: Rules = FSDP_TENSOR,
    dtype: Any = jnp.float32,
    unused: Iterable[str] = (),
    progress: Callable[[Iterable[Name]], Iterable[Name]] = iter,
) -> dict[str, Any]:
    """Reads the parameters of `model`.

    Args:
      model: config of the model.
      source: the file or files.
      table: how they name and lay out tensors.
      mesh: over which to split them; the first device alone by default.
      rules: which mesh axis splits which letter.
      dtype: what parameters are kept in.
      unused: tensors that may be there and are not read.
      progress: wraps the tensors while they are read.

    Returns:
      The nested dict {"decoder": ...}, and what other parts the model has.

    Raises:
      FormatError: a tensor that is missing, one too many, of another shape, or not finite.
    """
    mesh = mesh or make_mesh(devices=jax.devices()[:1])
    dtype = jnp.dtype(dtype)
    wanted = tensors(model, table)
    source.check({name.tensor: name.shape for name in wanted}, unused)
    found: dict[str, Any] = {}
    stacked = any(name.layer is not None for name in wanted)
    if not stacked and mesh.size == 1 and mesh.devices.flat[0].platform == "cpu":
        for name, array in arrays(source, wanted, dtype, AHEAD, progress):
            place = weight_sharding(name.our_letters, name.our_shape, mesh, rules)
            found[name.path] = jax.device_put(array, place)
        return nested(found)
    way = _Way(min(AHEAD, max(math.prod(name.shape) for name in wanted)), dtype)
    with using(mesh, rules):
        for name in progress(wanted):
            way.clear(math.prod(name.shape))
            letters, shape = name.our_letters, name.our_shape
            if name.layer is not None:
                letters, shape = "L" + letters, (name.stacked, *shape)
            sharding = weight_sharding(letters, shape, mesh, rules)
            tensor = jax.device_put(
                _numbers(source, name), weight_sharding(name.letters, name.shape, mesh, rules)
            )
            kind = dataclasses.replace(name, path="", layer=None, tensor="")
            if name.layer is None:
                found[name.path], finite = _turn(kind, dtype, sharding)(tensor)
            else:
                if name.path not in found:
                    found[name.path] = _zeros(shape, dtype, sharding)()
                turn = _turn_into(kind, dtype, sharding)
                found[name.path], finite = turn(found[name.path], tensor, name.layer)
            del tensor
            way.add(name, finite)
    way.end()
    return nested(found)


class _Way:
    """Tensors that the devices are still turning, together of at most so many numbers.

    Small ones are turned while the next is read; one larger than `most` is alone.
    """

    def __init__(self, most: int, dtype: Any):
        self.most, self.dtype, self.held = most, dtype, 0
        self.tensors: deque[tuple[Name, jax.Array]] = deque()

    def add(self, name: Name, finite: jax.Array) -> None:
        """Notes a tensor, and what will say whether it is finite."""
        self.tensors.append((name, finite))
        self.held += math.prod(name.shape)

    def clear(self, numbers: int) -> None:
        """Waits until there is room for a tensor of so many numbers.

        Raises:
          FormatError: one that has arrived is not finite.
        """
        while self.tensors and self.held + numbers > self.most:
            name, finite = self.tensors.popleft()
            self.held -= math.prod(name.shape)
            if not finite:
                raise not_finite(name.tensor, self.dtype)

    def end(self) -> None:
        """Waits for all of them; errors as for `clear`."""
        self.clear(self.most + 1)


def _numbers(source: Source, name: Name) -> np.ndarray:
    tensor = source.read(name.tensor)
    # jax has no float64 and would warn.
    return tensor.astype(np.float32) if tensor.dtype == np.float64 else tensor


@lru_cache(64)
def _zeros(shape: tuple[int, ...], dtype: np.dtype, sharding: NamedSharding):
    return jax.jit(partial(jnp.zeros, shape, dtype), out_shardings=sharding)


@lru_cache(64)
def _turn(kind: Name, dtype: np.dtype, sharding: NamedSharding):
    """tensor -> the weight, and whether all of it is finite."""
    return jax.jit(partial(_weight, kind, dtype), out_shardings=(sharding, None))


@lru_cache(64)
def _turn_into(kind: Name, dtype: np.dtype, sharding: NamedSharding):
    """weights of all layers, a layer's tensor, its number -> weights with it, whether finite."""

    def turn(stacked: jax.Array, tensor: jax.Array, layer: int) -> tuple[jax.Array, jax.Array]:
        weight, finite = _weight(kind, dtype, tensor)
        return jax.lax.dynamic_update_index_in_dim(stacked, weight, layer, 0), finite

    return jax.jit(turn, out_shardings=(sharding, None), donate_argnums=0)


def _weight(kind: Name, dtype: np.dtype, tensor: jax.Array) -> tuple[jax.Array, jax.Array]:
    # Compiled for a CPU, this needs no memory but that of the result. Without the barrier XLA casts
    # before it turns, into an array of its own; so would a test of each number be.
    weight = jax.lax.optimization_barrier(kind.ours(tensor)).astype(dtype)
    ends = jnp.stack([jnp.max(tensor), jnp.min(tensor)])  # NaN if there is one
    return weight, jnp.all(jnp.isfinite(ends.astype(dtype)))


def abstract(model: Decoder) -> dict[str, Lettered]:
    """Shape and letters of every parameter, by its path below the decoder."""
    # Traced as one period without a loop: thirty take seconds, and a loop is traced twice.
    stack, period = model.stack, "stack/layer_0/"
    one = dataclasses.replace(model, stack=dataclasses.replace(stack, scan=False, repeats=1))
    module, ids = one.build(), jax.ShapeDtypeStruct((1, 1), jnp.int32)
    made = jax.eval_shape(lambda ids: module.init(jax.random.key(0), ids, method="decode"), ids)
    found = {}
    for path, box in flat(
        made["params"]["decoder"], is_leaf=lambda x: isinstance(x, Lettered)
    ).items():
        if not path.startswith(period):
            found[path] = box
        elif stack.scan:
            value = jax.ShapeDtypeStruct((stack.repeats, *box.value.shape), box.value.dtype)
            found[path.replace(period, STACKED)] = Lettered(value, "L" + box.letters)
        else:
            for i in range(stack.repeats):
                found[path.replace(period, f"stack/layer_{i}/")] = box
    return found
