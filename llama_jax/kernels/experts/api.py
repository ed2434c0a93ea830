"""Experts over a mesh: each device has its own, and adds up with the others what they made.

The rows of a batch are not split over `expert` but whole on each of its devices, so no token has to
travel: a device leaves out what others have experts for, and one sum over `expert` and `tensor`
makes the result. What is sent is as much as two sums of tensor parallelism.
"""

from collections.abc import Callable
from functools import partial

import jax
from jax.sharding import PartitionSpec
from jaxtyping import Array, Float, Int

from llama_jax.axes import activation_spec, check_divides, weight_spec
from llama_jax.kernels.attention.sharded import free_axes
from llama_jax.kernels.experts import ragged


def experts(
    x_BTD: Float[Array, "B T D"],
    chosen_BTC: Int[Array, "B T C"],
    share_BTC: Float[Array, "B T C"],
    gate_EDF: Float[Array, "E D F"],
    up_EDF: Float[Array, "E D F"],
    down_EFD: Float[Array, "E F D"],
    activation: Callable[[jax.Array], jax.Array],
) -> Float[Array, "B T D"]:
    """See `reference.experts`; over the mesh that is set.

    Raises:
      UserError: rows or experts that the mesh does not divide.
    """
    axes, weights = free_axes(), (gate_EDF, up_EDF, down_EFD)
    run = partial(_own, activation=activation)
    if not axes:
        return run(x_BTD, chosen_BTC, share_BTC, *weights)
    mesh = jax.sharding.get_abstract_mesh()
    rows = check_divides("BTD", x_BTD.shape, _whole("BTD", activation_spec("BTD")), mesh)
    into = check_divides("EDF", gate_EDF.shape, _whole("EDF", weight_spec("EDF")), mesh)
    out = PartitionSpec(into[0], into[2], into[1])
    split = (*_axes(into[0]), *_axes(into[2]))
    return jax.shard_map(
        partial(run, over=_axes(into[0]), summed=split),
        in_specs=(rows, rows, rows, into, into, out),
        out_specs=rows,
        axis_names=axes,
        check_vma=False,
    )(x_BTD, chosen_BTC, share_BTC, *weights)


def _own(
    x_BTD: jax.Array,
    chosen_BTC: jax.Array,
    share_BTC: jax.Array,
    gate_EDF: jax.Array,
    up_EDF: jax.Array,
    down_EFD: jax.Array,
    activation: Callable[[jax.Array], jax.Array],
    over: tuple[str, ...] = (),
    summed: tuple[str, ...] = (),
) -> jax.Array:
    """What the experts of one device make of its rows, summed with what the others' make."""
    B, T, D = x_BTD.shape
    if over:
        chosen_BTC = chosen_BTC - jax.lax.axis_index(over) * len(gate_EDF)
    x, chosen, share = (a.reshape(B * T, a.shape[-1]) for a in (x_BTD, chosen_BTC, share_BTC))
    y = ragged.experts(x, chosen, share, gate_EDF, up_EDF, down_EFD, activation).reshape(B, T, D)
    return jax.lax.psum(y, summed) if summed else y


def _whole(letters: str, spec: PartitionSpec) -> PartitionSpec:
    """Without a split of D, over which a product with a weight sums."""
    return PartitionSpec(
        *(None if letter == "D" else part for letter, part in zip(letters, spec, strict=True))
    )


def _axes(part: str | tuple[str, ...] | None) -> tuple[str, ...]:
    return () if part is None else (part,) if isinstance(part, str) else part
