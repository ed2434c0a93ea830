"""Experts over a mesh: each device has its own, and adds up with the others what they made.

The rows of a batch are split over `expert` too. Its devices show each other all their tokens, each
leaves out what others have experts for, and a sum gives back to each what was made of its own. So
no token is dropped, whatever is chosen; an exchange of the chosen alone would send less.
"""

from collections.abc import Callable
from functools import partial

import jax
from jax.sharding import PartitionSpec
from jaxtyping import Array, Float, Int

from llama_jax.axes import activation_spec, check_divides, weight_spec
from llama_jax.kernels import flop_count
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
    # A program is counted by what tokens choose: a device passes over the rows of others.
    if not axes or flop_count.on():
        return run(x_BTD, chosen_BTC, share_BTC, *weights)
    mesh = jax.sharding.get_abstract_mesh()
    rows = check_divides("BTD", x_BTD.shape, _whole("BTD", activation_spec("BTD")), mesh)
    into = check_divides("EDF", gate_EDF.shape, _whole("EDF", weight_spec("EDF")), mesh)
    out, over = PartitionSpec(into[0], into[2], into[1]), _axes(into[0])
    apart = tuple(axis for axis in over if axis in _axes(rows[0]))
    summed = tuple(axis for axis in (*over, *_axes(into[2])) if axis not in apart)
    return jax.shard_map(
        partial(run, over=over, apart=apart, summed=summed),
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
    apart: tuple[str, ...] = (),
    summed: tuple[str, ...] = (),
) -> jax.Array:
    """What all experts make of a device's rows.

    Args:
      x_BTD: rows of one device.
      chosen_BTC: numbers among all experts.
      share_BTC: the factor of each.
      gate_EDF: experts of one device.
      up_EDF: likewise.
      down_EFD: likewise.
      activation: maps 0 to 0.
      over: mesh axes that split the experts.
      apart: axes of `over` that split the rows too.
      summed: other axes along which devices have parts of what is made.
    """
    if apart:
        x_BTD, chosen_BTC, share_BTC = (
            jax.lax.all_gather(x, apart, axis=0, tiled=True) for x in (x_BTD, chosen_BTC, share_BTC)
        )
    B, T, D = x_BTD.shape
    if over:
        chosen_BTC = chosen_BTC - jax.lax.axis_index(over) * len(gate_EDF)
    x, chosen, share = (a.reshape(B * T, a.shape[-1]) for a in (x_BTD, chosen_BTC, share_BTC))
    y = ragged.experts(x, chosen, share, gate_EDF, up_EDF, down_EFD, activation).reshape(B, T, D)
    y = jax.lax.psum(y, summed) if summed else y
    return jax.lax.psum_scatter(y, apart, scatter_dimension=0, tiled=True) if apart else y


def _whole(letters: str, spec: PartitionSpec) -> PartitionSpec:
    """Without a split of D, over which a product with a weight sums."""
    return PartitionSpec(
        *(None if letter == "D" else part for letter, part in zip(letters, spec, strict=True))
    )


def _axes(part: str | tuple[str, ...] | None) -> tuple[str, ...]:
    return () if part is None else (part,) if isinstance(part, str) else part
