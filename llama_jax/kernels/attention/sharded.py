"""A kernel under a mesh: each device runs it on its own rows and heads, inside `shard_map`.

The partitioner cannot look into a kernel, so the axes are split by hand, by the letters' rules.
"""

from typing import Any

import jax
from jax.sharding import AxisType, PartitionSpec
from jaxtyping import Array, Float

from llama_jax.axes import activation_spec, check_divides
from llama_jax.kernels.attention import flash
from llama_jax.kernels.attention.block_mask import Operands, operands
from llama_jax.kernels.attention.flash import Kernel, Static, Summed
from llama_jax.kernels.attention.mask import Mask


def attend(
    kernel: Kernel,
    q: Float[Array, "B T N H"],
    k: Float[Array, "B S K H"],
    v: Float[Array, "B S K H"],
    mask: Mask,
    *,
    bias: None,
    scale: float,
    softcap: float | None,
) -> Summed:
    """`flash.attend` over the mesh that is set, split over batch and heads."""
    assert bias is None  # refused by the table
    data = operands(mask, q.shape[0], q.shape[1], k.shape[1])
    static = Static(mask.structure, scale, softcap)

    def one(q, k, v, data):
        return flash.differentiable(kernel, q, k, v, data, static)

    axes = free_axes()
    if not axes:
        return one(q, k, v, data)
    mesh = jax.sharding.get_abstract_mesh()
    spec = check_divides("BTNH", q.shape, _whole(activation_spec("BTNH")), mesh)
    keys = check_divides("BSKH", k.shape, _whole(activation_spec("BSKH")), mesh)
    row: Any = PartitionSpec(spec[0])
    rows = Operands(*(None if x is None else row for x in data))
    return jax.shard_map(
        one,
        in_specs=(spec, keys, keys, rows),
        out_specs=(spec, PartitionSpec(spec[0], spec[2], spec[1])),
        axis_names=axes,
        check_vma=False,
    )(q, k, v, data)


def free_axes() -> set[Any]:
    """The axes of the mesh that the partitioner still splits over; empty on one device."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.size == 1:
        return set()
    pairs = zip(mesh.axis_names, mesh.axis_types, strict=True)
    return {axis for axis, kind in pairs if kind != AxisType.Manual}


def _whole(spec: PartitionSpec) -> PartitionSpec:
    """Without a split of the sequence: each query sees keys of everywhere."""
    return PartitionSpec(spec[0], None, *spec[2:])
