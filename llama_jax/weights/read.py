"""A checkpoint's tensors into a model's parameters, one at a time.

Host memory holds one tensor (and what its conversion copies); the rest is on the devices, each with
its own part.
"""

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from llama_jax.axes import FSDP_TENSOR, Rules, make_mesh, using, weight_sharding
from llama_jax.errors import FormatError
from llama_jax.layers.linear import Lettered
from llama_jax.models.decoder import DecoderLM
from llama_jax.weights.names import Name, Rows, names
from llama_jax.weights.source import Source


def sizes(model: DecoderLM) -> dict[str, int]:
    """The sizes of the letters D, N, K, H, F and V of a LLaMA model."""
    [block] = model.decoder.stack.pattern
    attention = block.attention
    return {
        "D": model.decoder.width,
        "N": attention.heads,
        "K": attention.kv_heads,
        "H": attention.head_dim,
        "F": block.ffn.hidden,
        "V": model.decoder.vocab,
    }


def tensors(model: DecoderLM, rows: Rows) -> list[Name]:
    """Every tensor of a model in a format; see `names`."""
    stack = model.decoder.stack
    return names(rows, sizes(model), stack.repeats, model.decoder.tied, stack.scan)


def read(
    model: DecoderLM,
    source: Source,
    rows: Rows,
    mesh: Mesh | None = None,
    rules: Rules = FSDP_TENSOR,
    dtype: Any = jnp.float32,
    unused: Iterable[str] = (),
    progress: Callable[[Iterable[Name]], Iterable[Name]] = iter,
) -> dict[str, Any]:
    """Reads the parameters of `model`.

    Args:
      model: its config.
      source: the file or files.
      rows: how they name and lay out tensors.
      mesh: over which to split them; the first device alone by default.
      rules: which mesh axis splits which letter.
      dtype: of the parameters.
      unused: tensors that may be there and are not read.
      progress: wraps the tensors while they are read.

    Returns:
      The nested dict {"decoder": ...}.

    Raises:
      FormatError: a tensor that is missing, one too many, of another shape, or not finite.
    """
    mesh = mesh or make_mesh(devices=jax.devices()[:1])
    wanted = tensors(model, rows)
    source.check({name.tensor: name.shape for name in wanted}, unused)
    boxes = abstract(model)
    with using(mesh, rules):
        stacked = {name.path for name in wanted if name.layer is not None}
        found = _empty({path: boxes[path] for path in sorted(stacked)}, mesh, rules, dtype)
        for name in progress(wanted):
            letters, shape = boxes[name.path].letters, boxes[name.path].value.shape
            value = _finite(name, source.read(name.tensor))
            if name.layer is None:
                # A copy: jax may keep what it is given, and that may be the mapped file.
                sharding = weight_sharding(letters, shape, mesh, rules)
                found[name.path] = jax.device_put(value.astype(dtype), sharding)
                continue
            place = weight_sharding(letters[1:], shape[1:], mesh, rules)
            layer = jax.device_put(value.astype(dtype, copy=False), place)
            found[name.path] = _put(found[name.path], layer, name.layer)
    return {"decoder": nested(found)}


def _empty(
    boxes: dict[str, Lettered], mesh: Mesh, rules: Rules, dtype: Any
) -> dict[str, jax.Array]:
    """Zeros for the weights that are filled layer by layer, from one program."""
    shardings = {
        path: weight_sharding(box.letters, box.value.shape, mesh, rules)
        for path, box in boxes.items()
    }
    make = {path: partial(jnp.zeros, box.value.shape, dtype) for path, box in boxes.items()}
    zeros = jax.jit(lambda: {path: zero() for path, zero in make.items()}, out_shardings=shardings)
    return zeros()


@partial(jax.jit, donate_argnums=0)
def _put(stacked: jax.Array, layer: jax.Array, index: int) -> jax.Array:
    return jax.lax.dynamic_update_index_in_dim(stacked, layer, index, 0)


def _finite(name: Name, tensor: np.ndarray) -> np.ndarray:
    if not np.all(np.isfinite(tensor)):
        raise FormatError(f"tensor {name.tensor!r} holds values that are not finite")
    return np.ascontiguousarray(name.ours(tensor))


def abstract(model: DecoderLM) -> dict[str, Lettered]:
    """Shape and letters of every parameter, by its path below the decoder."""
    module, ids = model.build(), jax.ShapeDtypeStruct((1, 1), jnp.int32)
    made = jax.eval_shape(lambda ids: module.init(jax.random.key(0), ids, method="decode"), ids)
    boxes, _ = jax.tree_util.tree_flatten_with_path(
        made["params"]["decoder"], is_leaf=lambda x: isinstance(x, Lettered)
    )
    return {"/".join(key.key for key in path): box for path, box in boxes}


def nested(flat: dict[str, Any]) -> dict[str, Any]:
    """{"a/b": x} as {"a": {"b": x}}."""
    tree: dict[str, Any] = {}
    for path, value in flat.items():
        *outer, last = path.split("/")
        inner = tree
        for part in outer:
            inner = inner.setdefault(part, {})
        inner[last] = value
    return tree
