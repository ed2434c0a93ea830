"""Meshes by name: how a run is laid out on the devices that there are.

    llama-jax train tiny_decoder --run-dir runs/x --mesh pipeline --mesh.data 4
    run = laid_out(presets.get("tiny_decoder"), "fsdp_tensor")

All but `data` and `residual` have the same rules: an axis of one device splits nothing, so any two
of them may be mixed.
"""

import dataclasses
from dataclasses import dataclass

from llama_jax.axes import DATA, FSDP_TENSOR, FSDP_TENSOR_RESIDUAL, Rules
from llama_jax.config import Mesh, Run
from llama_jax.errors import UserError, nearest


@dataclass(frozen=True)
class Layout:
    """A mesh and its rules.

    Attributes:
      mesh: sizes; the -1 takes all devices that are left.
      rules: which mesh axis splits which letter.
    """

    mesh: Mesh
    rules: Rules = FSDP_TENSOR


LAYOUTS: dict[str, Layout] = {
    # Every device has all weights: for models that fit into one.
    "data": Layout(Mesh(), DATA),
    # Every device has a share of each weight, and fetches the others' when it needs them: the first
    # thing to try with a model that does not fit.
    "fsdp": Layout(Mesh(data=1, fsdp=-1)),
    # Heads and feed-forward split too, among neighbours: for when the rows do not reach.
    "fsdp_tensor": Layout(Mesh(data=1, fsdp=-1, tensor=2)),
    # And what passes between blocks as well: for hundreds of billions of weights.
    "residual": Layout(Mesh(data=1, fsdp=-1, tensor=2), FSDP_TENSOR_RESIDUAL),
    # Only them: decoding, where fetching weights for each token would take all the time.
    "tensor": Layout(Mesh(data=1, tensor=-1)),
    # Each device has a part of every sequence, and keys go round: long sequences, few rows.
    "context": Layout(Mesh(data=1, context=-1)),
    # Each device has some of the layers: for slow networks, which carry a micro-batch at a time.
    "pipeline": Layout(Mesh(stage=2)),
}


def get(name: str) -> Layout:
    """The layout of a name.

    Raises:
      UserError: there is none; the nearest is named.
    """
    if name not in LAYOUTS:
        known = ", ".join(LAYOUTS)
        raise UserError(f"no mesh {name!r}; there are {known}{nearest(name, LAYOUTS)}")
    return LAYOUTS[name]


def laid_out(run: Run, name: str) -> Run:
    """The run with the mesh and the rules of a name."""
    layout = get(name)
    return dataclasses.replace(run, mesh=layout.mesh, rules=layout.rules)
