"""The alphabet: one letter an axis, in einsums, behind variable names and in the sharding tables.

A weight made by `"BTD,DNH->BTNH"` has the axes D, N and H; a value `q_BTNH` has B, T, N and H. Two
tables say over which mesh axis a letter is split, one for weights and one for activations (FSDP
splits a weight's D, never an activation's). On a mesh of one device all of it is a no-op, with the
same code.

    mesh = make_mesh(fsdp=4, tensor=2)
    with using(mesh):
        y_BTF = shard(x_BTF, "BTF")
"""

import contextlib
import contextvars
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec

LETTERS: dict[str, str] = {
    "A": "another width: alignment space, bottleneck, masked positions, position axes",
    "B": "batch",
    "C": "expert capacity",
    "D": "embed",
    "E": "experts",
    "F": "feed-forward",
    "G": "query heads a key/value head (N / K)",
    "H": "head dim",
    "I": "images (consecutive batch rows may share one)",
    "K": "key/value heads",
    "L": "layers (scan)",
    "M": "modalities, images or tiles",
    "N": "query heads",
    "P": "patches",
    "R": "colour channels",
    "S": "key length",
    "T": "query length",
    "V": "vocab",
    "X": "image width",
    "Y": "image height",
}

MESH_AXES = ("data", "fsdp", "tensor", "context", "expert")

Table = tuple[tuple[str, str | tuple[str, ...]], ...]


def _known(letter: str) -> None:
    if letter not in LETTERS:
        raise ValueError(f"unknown axis letter {letter!r}; the alphabet is {''.join(LETTERS)}")


@dataclass(frozen=True)
class Rules:
    """Which mesh axes split which letter; a letter that is absent is replicated."""

    weights: Table
    activations: Table

    def __post_init__(self):
        for letter, _ in self.weights + self.activations:
            _known(letter)


# Fully sharded data parallel and Megatron-style tensor parallel at once: an axis of size 1 splits
# nothing.
FSDP_TENSOR = Rules(
    weights=(
        ("D", "fsdp"),
        ("N", "tensor"),
        ("K", "tensor"),
        ("F", "tensor"),
        ("V", "tensor"),
        ("E", "expert"),
    ),
    activations=(
        ("B", ("data", "fsdp")),
        ("I", ("data", "fsdp")),
        ("T", "context"),
        ("S", "context"),
        ("N", "tensor"),
        ("K", "tensor"),
        ("F", "tensor"),
        ("V", "tensor"),
        ("E", "expert"),
    ),
)
# Pure data parallelism: weights whole on every device.
DATA = Rules(weights=(), activations=(("B", ("data", "fsdp")), ("I", ("data", "fsdp"))))

_rules: contextvars.ContextVar[Rules] = contextvars.ContextVar("rules", default=FSDP_TENSOR)


def make_mesh(
    data: int = -1,
    fsdp: int = 1,
    tensor: int = 1,
    context: int = 1,
    expert: int = 1,
    devices: Sequence[Any] | None = None,
) -> jax.sharding.Mesh:
    """Makes the mesh with all axes of `MESH_AXES`; one size may be -1 and takes what is left.

    Args:
      data: replicas of the weights.
      fsdp: devices over which a weight's embed axis is split; they share the batch too.
      tensor: devices over which heads, feed-forward and vocabulary are split.
      context: devices over which a sequence is split.
      expert: devices over which experts are split.
      devices: the devices to use; all of them by default.

    Returns:
      A mesh whose axes are of type Auto: `with_sharding_constraint` guides the partitioner.

    Raises:
      ValueError: the sizes do not multiply to the number of devices.
    """
    devices = list(jax.devices() if devices is None else devices)
    sizes = [data, fsdp, tensor, context, expert]
    if sizes.count(-1) > 1 or any(size == 0 or size < -1 for size in sizes):
        raise ValueError(f"mesh sizes {sizes}: use positive sizes and at most one -1")
    known = math.prod(size for size in sizes if size > 0)
    if -1 in sizes and len(devices) % known == 0:
        sizes[sizes.index(-1)] = len(devices) // known
    if math.prod(sizes) != len(devices):
        named = ", ".join(f"{axis}={size}" for axis, size in zip(MESH_AXES, sizes, strict=True))
        raise ValueError(
            f"a mesh of {named} needs {known} devices (or a multiple, with one size -1), "
            f"{len(devices)} are here"
        )
    grid = np.asarray(devices).reshape(sizes)
    return jax.sharding.Mesh(grid, MESH_AXES, axis_types=(AxisType.Auto,) * len(MESH_AXES))


@contextlib.contextmanager
def using(mesh: jax.sharding.Mesh, rules: Rules = FSDP_TENSOR) -> Iterator[None]:
    """Within the block, jitted code is partitioned over `mesh` by `rules`."""
    token = _rules.set(rules)
    try:
        with jax.set_mesh(mesh):
            yield
    finally:
        _rules.reset(token)


def weight_spec(letters: str, rules: Rules | None = None) -> PartitionSpec:
    """The partition of a weight with these letters, e.g. "DNH" -> P("fsdp", "tensor", None)."""
    return _spec(letters, (rules or _rules.get()).weights)


def activation_spec(letters: str, rules: Rules | None = None) -> PartitionSpec:
    """The partition of an activation, e.g. "BTD" -> P(("data", "fsdp"), "context", None)."""
    return _spec(letters, (rules or _rules.get()).activations)


def row_ways() -> int:
    """Over how many devices the rows of a batch are split; 1 without a mesh."""
    mesh = jax.sharding.get_abstract_mesh()
    return 1 if mesh.empty else math.prod(mesh.shape[a] for a in _tuple(activation_spec("B")[0]))


def shard(x: jax.Array, letters: str) -> jax.Array:
    """Constrains x, whose axes are `letters`, to the partition of the activation table.

    Without a mesh it returns x. An axis that the mesh cannot divide evenly raises, so that nothing
    is replicated or padded in silence; only an axis of length 1 (a broadcast one) is left whole.

    Raises:
      ValueError: an unknown letter, a wrong rank, or an axis that cannot be divided.
    """
    for letter in letters:
        _known(letter)
    if x.ndim != len(letters):
        raise ValueError(f"shape {x.shape} has {x.ndim} axes, {letters!r} names {len(letters)}")
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.size == 1:
        return x
    spec = check_divides(letters, x.shape, activation_spec(letters), mesh)
    return jax.lax.with_sharding_constraint(x, spec)


def check_divides(letters: str, shape: tuple[int, ...], spec: PartitionSpec, mesh) -> PartitionSpec:
    """Returns `spec` without the axes of length 1; raises if another axis is not divisible."""
    parts = []
    for letter, length, part in zip(letters, shape, spec, strict=True):
        ways = math.prod(mesh.shape[axis] for axis in _tuple(part))
        if length == 1:
            part = None
        elif length % ways:
            raise ValueError(
                f"axis {letter} ({LETTERS[letter]}) of length {length} in {letters!r} {shape} is "
                f"not divisible by the {ways} devices of mesh axes {_tuple(part)}; change the "
                "size, the mesh or the rules"
            )
        parts.append(part)
    return PartitionSpec(*parts)


def weight_sharding(letters: str, shape: tuple[int, ...], mesh, rules: Rules) -> NamedSharding:
    """The sharding of a weight on a mesh; raises ValueError if an axis cannot be divided."""
    return NamedSharding(mesh, check_divides(letters, shape, weight_spec(letters, rules), mesh))


def _spec(letters: str, table: Table) -> PartitionSpec:
    where = dict(table)
    used: set[str] = set()
    parts = []
    for letter in letters:
        _known(letter)
        part = where.get(letter)
        if used & set(_tuple(part)):
            raise ValueError(
                f"{letters!r} would use mesh axis {part!r} twice; give the axes other letters"
            )
        used |= set(_tuple(part))
        parts.append(part)
    return PartitionSpec(*parts)


def _tuple(part: str | tuple[str, ...] | None) -> tuple[str, ...]:
    return () if part is None else (part,) if isinstance(part, str) else tuple(part)
