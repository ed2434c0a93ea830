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
from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Any

import jax
from jax.experimental import mesh_utils
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from llama_jax.checked import checked, checked_call
from llama_jax.errors import UserError, nearest
from llama_jax.messages import short

LETTERS: dict[str, str] = {
    "A": "another width: alignment space, bottleneck, masked positions, position axes",
    "B": "batch",
    "C": "choices: experts that a token goes through",
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

# From the one that moves least to the one that moves most, for neighbours in the last are near.
MESH_AXES = (
    "stage",  # devices over which the layers of a stack are split, a pipeline
    "data",  # replicas of the weights
    "fsdp",  # devices over which a weight's embed axis is split; they share the batch too
    "expert",  # devices over which experts are split; they share the batch too
    "context",  # devices over which a sequence is split
    "tensor",  # devices over which heads, feed-forward and vocabulary are split
)
# Those that a data-centre network is fast enough for, the most frugal first: one sum of gradients
# a step; a micro-batch a tick; every weight twice a step.
ACROSS_SLICES = ("data", "stage", "fsdp")

Table = tuple[tuple[str, str | tuple[str, ...]], ...]


def _known(letter: str) -> None:
    if letter not in LETTERS:
        raise UserError(f"unknown axis letter {letter!r}; the alphabet is {''.join(LETTERS)}")


@checked
class Rules:
    """Which mesh axes split which letter; a letter that is absent is replicated.

    Attributes:
      weights: rules for weights, and for what an optimizer keeps of each.
      activations: rules for everything else.
      microbatches: parts of a batch that follow each other through the stages of a pipeline; a
        multiple of the stages, or 0 for the most that the rows allow, up to four a stage.
    """

    weights: Table
    activations: Table
    microbatches: int = 0

    def __post_init__(self):
        for letter, _ in self.weights + self.activations:
            _known(letter)
        if self.microbatches < 0:
            raise UserError(f"microbatches={self.microbatches}: give a positive number, or 0")

    def letters(self, axis: str) -> frozenset[str]:
        """The letters that a mesh axis splits."""
        tables = self.weights + self.activations
        return frozenset(letter for letter, part in tables if axis in _tuple(part))

    def of_weights(self, axis: str) -> frozenset[str]:
        """The letters of weights that a mesh axis splits."""
        return frozenset(letter for letter, part in self.weights if axis in _tuple(part))

    def without(self, axis: str) -> "Rules":
        """The rules of code that sees its own part along `axis`: nothing is split over it."""

        def rest(table: Table) -> Table:
            parts = ((key, tuple(a for a in _tuple(part) if a != axis)) for key, part in table)
            return tuple((letter, part) for letter, part in parts if part)

        return replace(self, weights=rest(self.weights), activations=rest(self.activations))


# Fully sharded data parallel, Megatron-style tensor parallel, context and pipeline parallel at
# once: an axis of size 1 splits nothing. Outside of a pipelined stack its stages share the rows.
FSDP_TENSOR = Rules(
    weights=(
        ("L", "stage"),
        ("D", "fsdp"),
        ("N", "tensor"),
        ("K", "tensor"),
        ("F", "tensor"),
        ("V", "tensor"),
        ("E", "expert"),
    ),
    activations=(
        ("B", ("data", "fsdp", "expert", "stage")),
        ("I", ("data", "fsdp", "expert", "stage")),
        ("T", "context"),
        ("S", "context"),
        ("N", "tensor"),
        ("K", "tensor"),
        ("F", "tensor"),
        ("V", "tensor"),
    ),
)
# As before, and what passes from block to block is split over tensor too (along D): a model of
# hundreds of billions of weights keeps too much of it otherwise. A sum over tensor becomes a
# scattered sum and a gather, of the same bytes together.
FSDP_TENSOR_RESIDUAL = replace(FSDP_TENSOR, activations=(*FSDP_TENSOR.activations, ("D", "tensor")))
# Pure data parallelism: weights whole on every device.
DATA = Rules(weights=(), activations=(("B", ("data", "fsdp")), ("I", ("data", "fsdp"))))

_rules: contextvars.ContextVar[Rules] = contextvars.ContextVar("rules", default=FSDP_TENSOR)


@checked_call
def make_mesh(devices: Iterable[Any] | None = None, **sizes: int) -> jax.sharding.Mesh:
    """Makes the mesh with all axes of `MESH_AXES`; one size may be -1 and takes what is left.

    On a TPU, neighbours on the mesh are neighbours on the chips' torus. Devices of several slices
    (TPU pods joined by the data-centre network) are laid out so that one axis alone crosses it: the
    first of `ACROSS_SLICES` whose size the slices divide.

    Args:
      devices: the devices to use; all of them by default.
      sizes: devices of each axis by name; 1 if not given, but for `data`, which takes what is
        left (-1).

    Returns:
      A mesh whose axes are of type Auto: `with_sharding_constraint` guides the partitioner.

    Raises:
      UserError: no such axis, sizes that do not multiply to the number of devices, or no axis can
        cross slices.
    """
    devices = list(jax.devices() if devices is None else devices)
    if strange := [one for one in devices if not hasattr(one, "device_kind")]:
        raise UserError(f"{short(strange[0])} is no device; those of jax.devices() were expected")
    for axis in sizes:
        if axis not in MESH_AXES:
            known = ", ".join(MESH_AXES)
            raise UserError(f"no mesh axis {axis!r}; there are {known}{nearest(axis, MESH_AXES)}")
    shape = [sizes.get(axis, -1 if axis == "data" else 1) for axis in MESH_AXES]
    given = zip(MESH_AXES, shape, strict=True)
    named = ", ".join(f"{axis}={size}" for axis, size in given if size != 1) or "data=1"
    if shape.count(-1) > 1 or any(size == 0 or size < -1 for size in shape):
        raise UserError(f"a mesh of {named}: use positive sizes and at most one -1")
    known = math.prod(size for size in shape if size > 0)
    if -1 in shape and len(devices) % known == 0:
        shape[shape.index(-1)] = len(devices) // known
    if math.prod(shape) != len(devices):
        multiple = "a multiple of " if -1 in shape else ""
        raise UserError(
            f"a mesh of {named} needs {multiple}{known} devices, {len(devices)} are here; choose "
            f"sizes whose product is {len(devices)}, or -1 for one that takes what is left"
        )
    grid = _laid_out(shape, devices)
    return jax.sharding.Mesh(grid, MESH_AXES, axis_types=(AxisType.Auto,) * len(MESH_AXES))


def _laid_out(sizes: list[int], devices: list[Any]) -> Any:
    """The devices as an array of these sizes, so that what talks most is nearest."""
    slices = len({getattr(device, "slice_index", 0) or 0 for device in devices})
    # A torus axis may be cut in two for a logical one, rather than refuse the mesh.
    cut: Any = {"devices": devices, "allow_split_physical_axes": True}
    # A cluster's nodes are slices to XLA, those of a topology to compile for only processes.
    nodes = slices == 1 and devices[0].platform in ("gpu", "cuda")
    islands = len({device.process_index for device in devices}) if nodes else slices
    for axis in ACROSS_SLICES if islands > 1 else ():
        where = MESH_AXES.index(axis)
        if sizes[where] % islands == 0:
            across = [islands if i == where else 1 for i in range(len(sizes))]
            within = [size // n for size, n in zip(sizes, across, strict=True)]
            return mesh_utils.create_hybrid_device_mesh(
                within, across, process_is_granule=nodes, **cut
            )
    if slices == 1:
        return mesh_utils.create_device_mesh(sizes, **cut)
    named = ", ".join(f"{axis}={sizes[MESH_AXES.index(axis)]}" for axis in ACROSS_SLICES)
    raise UserError(
        f"the {len(devices)} devices are in {slices} slices and none of {named} is a multiple of "
        f"{slices}; only these cross slices, so give e.g. data={slices}"
    )


@contextlib.contextmanager
def using(mesh: jax.sharding.Mesh, rules: Rules = FSDP_TENSOR) -> Iterator[None]:
    """Within the block, jitted code is partitioned over `mesh` by `rules`."""
    token = _rules.set(rules)
    try:
        with jax.set_mesh(mesh):
            yield
    finally:
        _rules.reset(token)


@contextlib.contextmanager
def within(axis: str) -> Iterator[None]:
    """Inside a `shard_map` over `axis`: constraints are about the other axes."""
    token = _rules.set(_rules.get().without(axis))
    try:
        yield
    finally:
        _rules.reset(token)


def axes_of(letters: str) -> tuple[str, ...]:
    """The mesh axes that split an activation's letters, in the order of the rules."""
    return tuple(axis for part in activation_spec(letters) for axis in _tuple(part))


def stages() -> tuple[str, int]:
    """The mesh axis that the layers of a stack are split over, and its size; ("", 1) without.

    Raises:
      UserError: the rules split L over several axes.
    """
    names, mesh = _tuple(weight_spec("L")[0]), jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return "", 1
    split = [(name, mesh.shape[name]) for name in names if mesh.shape[name] > 1]
    if len(split) > 1:
        raise UserError(f"the rules split L over {names}; a pipeline goes over one axis")
    return split[0] if split else ("", 1)


def microbatches() -> int:
    """What the rules ask for; 0 for the most that the rows allow."""
    return _rules.get().microbatches


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
      UserError: an unknown letter, a wrong rank, or an axis that cannot be divided.
    """
    for letter in letters:
        _known(letter)
    if x.ndim != len(letters):
        raise UserError(f"shape {x.shape} has {x.ndim} axes, {letters!r} names {len(letters)}")
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.size == 1:
        return x
    spec = check_divides(letters, x.shape, activation_spec(letters), mesh)
    return jax.lax.with_sharding_constraint(x, spec)


def as_looked_up(x: jax.Array, letters: str) -> jax.Array:
    """Constrains rows of a table, an activation with these letters, to lie as the table does.

    Of each row a device then has the part of D that it has of the table, for all rows that the
    devices of that mesh axis share: what is done to them before `shard` is done before they are
    sent. Where further axes split the mesh, XLA would make the rows whole on the way, and x is left
    as it is; so it is without a mesh.

    Raises:
      UserError: an axis that cannot be divided.
    """
    mesh = jax.sharding.get_abstract_mesh()
    own = _tuple(weight_spec("D")[0])
    parts = [_tuple(part) for part in activation_spec(letters.replace("D", ""))]
    known = {*own, *(axis for part in parts for axis in part)}
    if mesh.empty or math.prod(n for axis, n in mesh.shape.items() if axis not in known) > 1:
        return x
    rest = [tuple(axis for axis in part if axis not in own) or None for part in parts]
    rest.insert(letters.index("D"), own or None)
    spec = check_divides(letters, x.shape, PartitionSpec(*rest), mesh)
    return jax.lax.with_sharding_constraint(x, spec)


def check_divides(letters: str, shape: tuple[int, ...], spec: PartitionSpec, mesh) -> PartitionSpec:
    """`spec` without the axes of length 1; raises if another axis is not divisible."""
    parts = []
    for letter, length, part in zip(letters, shape, spec, strict=True):
        ways = math.prod(mesh.shape[axis] for axis in _tuple(part))
        if length == 1:
            part = None
        elif length % ways:
            raise UserError(
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
            raise UserError(
                f"{letters!r} would use mesh axis {part!r} twice; give the axes other letters"
            )
        used |= set(_tuple(part))
        parts.append(part)
    return PartitionSpec(*parts)


def _tuple(part: str | tuple[str, ...] | None) -> tuple[str, ...]:
    return () if part is None else (part,) if isinstance(part, str) else tuple(part)
