"""A checkpoint's tensors into a model's parameters, one at a time.

Host memory beyond the parameters: the largest tensor, as it is in the file, and at most `OVERHEAD`
for what is compiled (40 to 60 MB were measured; tests/weights/test_memory.py holds it to that).
Tensors are turned, split and cast on the devices, of which each gets only its own part. On a CPU
the parameters are host memory too; they are filled in place.
"""

import dataclasses
from collections.abc import Callable, Iterable
from functools import lru_cache, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding

from llama_jax.axes import FSDP_TENSOR, Rules, make_mesh, using, weight_sharding
from llama_jax.errors import FormatError
from llama_jax.families.names import Name, Table, tensors
from llama_jax.formats.source import Source
from llama_jax.layers.linear import Lettered
from llama_jax.models.decoder import Decoder
from llama_jax.trees import flat, nested

OVERHEAD = 96 * 2**20  # bytes
STACKED = "stack/layers/"  # before the path of a weight that all layers have in one array


def read(
    model: Decoder,
    source: Source,
    table: Table,
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
      The nested dict {"decoder": ...}.

    Raises:
      FormatError: a tensor that is missing, one too many, of another shape, or not finite.
    """
    mesh = mesh or make_mesh(devices=jax.devices()[:1])
    dtype = jnp.dtype(dtype)
    wanted = tensors(model, table)
    source.check({name.tensor: name.shape for name in wanted}, unused)
    boxes = abstract(model)
    found: dict[str, Any] = {}
    with using(mesh, rules):
        for name in progress(wanted):
            box = boxes[name.path]
            sharding = weight_sharding(box.letters, box.value.shape, mesh, rules)
            tensor = jax.device_put(
                _numbers(source, name), weight_sharding(name.letters, name.shape, mesh, rules)
            )
            kind = dataclasses.replace(name, path="", layer=None, tensor="")
            if name.layer is None:
                found[name.path], finite = _turn(kind, dtype, sharding)(tensor)
            else:
                if name.path not in found:
                    found[name.path] = _zeros(box.value.shape, dtype, sharding)()
                turn = _turn_into(kind, dtype, sharding)
                found[name.path], finite = turn(found[name.path], tensor, name.layer)
            # Waits, so that no more than one tensor is on its way.
            if not finite:
                raise not_finite(name.tensor, dtype)
            del tensor
    return {"decoder": nested(found)}


def _numbers(source: Source, name: Name) -> np.ndarray:
    tensor = source.read(name.tensor)
    # jax has no float64 and would warn.
    return tensor.astype(np.float32) if tensor.dtype == np.float64 else tensor


def not_finite(tensor: str, dtype: Any) -> FormatError:
    """The error for a tensor with values that are not finite, or not in `dtype`."""
    return FormatError(
        f"tensor {tensor!r} holds values that are not finite as {jnp.dtype(dtype).name}, which "
        f"ends at {float(jnp.finfo(dtype).max):.3g}; is the file damaged, or would bfloat16 do?"
    )


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
    stack = model.stack
    if not stack.scan:
        # Traced as one layer, for thirty take seconds.
        stacked = dataclasses.replace(stack, scan=True)
        return _singles(abstract(dataclasses.replace(model, stack=stacked)), stack.repeats)
    module, ids = model.build(), jax.ShapeDtypeStruct((1, 1), jnp.int32)
    made = jax.eval_shape(lambda ids: module.init(jax.random.key(0), ids, method="decode"), ids)
    return flat(made["params"]["decoder"], is_leaf=lambda x: isinstance(x, Lettered))


def _singles(boxes: dict[str, Lettered], layers: int) -> dict[str, Lettered]:
    """The same with an entry for each layer, without the axis L."""
    found = {}
    for path, box in boxes.items():
        if not path.startswith(STACKED):
            found[path] = box
            continue
        one = jax.ShapeDtypeStruct(box.value.shape[1:], box.value.dtype)
        for i in range(layers):
            found[path.replace(STACKED, f"stack/layer_{i}/")] = Lettered(one, box.letters[1:])
    return found
