"""How processes and devices share the rows of a batch."""

from typing import Any

import jax
from jax.sharding import Mesh, NamedSharding

from llama_jax.axes import Rules, activation_spec
from llama_jax.errors import UserError
from llama_jax.train.accumulate import Batch


def put(batch: Batch, mesh: Mesh, rules: Rules) -> Batch:
    """Moves this host's rows to its devices, split as activations are along B."""
    sharding = _by_row(mesh, rules)
    return jax.tree.map(lambda x: jax.make_array_from_process_local_data(sharding, x), batch)


def check_rows(fields: dict[str, Any], mesh: Mesh, rules: Rules) -> None:
    """Checks that all devices have an equal share of the rows.

    Args:
      fields: (shape, dtype) of every field of the batch, by stream and name.
      mesh: the devices.
      rules: which mesh axis splits which letter.

    Raises:
      UserError: rows that cannot be shared.
    """
    ways = mesh.size // _by_row(mesh, rules).shard_shape((mesh.size,))[0]
    for stream, named in fields.items():
        for name, (shape, _) in named.items():
            if shape[0] % ways:
                raise UserError(
                    f"axis B: stream {stream!r} has {shape[0]} rows of {name!r}, which cannot be "
                    f"shared by {ways} devices; change --set data.{stream}.batch so that they are "
                    f"a multiple of {ways}, or the mesh"
                )


def share(mesh: Mesh, rules: Rules) -> tuple[int, int]:
    """Which part of a batch's rows this process reads, of how many parts: (0, 1) is all.

    Processes whose devices hold the same rows (their tensor axis goes across them) read the same.

    Raises:
      UserError: the devices of a process hold no run of rows of the common length.
    """
    parts: dict[int, set[tuple[int, int]]] = {}
    for device, (rows,) in _by_row(mesh, rules).devices_indices_map((mesh.size,)).items():
        start, stop, _ = rows.indices(mesh.size)
        parts.setdefault(device.process_index, set()).add((start, stop))
    ends = {i: (min(found)[0], max(found)[1]) for i, found in parts.items()}
    start, stop = ends[jax.process_index()]
    size = stop - start
    whole = all(sum(b - a for a, b in found) == size for found in parts.values())
    if not whole or any(b - a != size or a % size for a, b in ends.values()):
        raise UserError(
            f"the rows of a batch do not fall to processes in equal runs ({sorted(ends.values())} "
            f"of {mesh.size}); give the data and fsdp axes of the mesh a multiple or a divisor of "
            f"{len(parts)} processes"
        )
    return start // size, mesh.size // size


def _by_row(mesh: Mesh, rules: Rules) -> NamedSharding:
    return NamedSharding(mesh, activation_spec("B", rules))
