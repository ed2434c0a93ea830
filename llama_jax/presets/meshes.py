"""Meshes by name: how a run is laid out on the devices that there are.

    llama-jax train tiny_decoder --run-dir runs/x --mesh pipeline --mesh.data 4
    llama-jax train tiny_decoder --run-dir runs/x --mesh fsdp=4,tensor=2
    run = laid_out(presets.get("tiny_decoder"), "fsdp_tensor")

All but `data` and `residual` have the same rules: an axis of one device splits nothing, so any two
of them may be mixed.
"""

import dataclasses
import re

from llama_jax.axes import DATA, FSDP_TENSOR, FSDP_TENSOR_RESIDUAL, Rules
from llama_jax.checked import checked
from llama_jax.config import Mesh, Run
from llama_jax.errors import UserError, nearest

SIZES = re.compile("[=,:]")  # what no name of a mesh has


@checked
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
        raise UserError(
            f"no mesh {name!r}; there are {', '.join(LAYOUTS)}, and sizes such as "
            f"fsdp=64,tensor=4{nearest(name, LAYOUTS)}"
        )
    return LAYOUTS[name]


def laid_out(run: Run, text: str) -> Run:
    """The run with the mesh and the rules of a name, or with a mesh of sizes.

    Args:
      run: the Run; nothing in it is changed.
      text: a name, "fsdp", or sizes, "fsdp=64,tensor=4"; one may be -1, others are 1.

    Raises:
      UserError: neither, or an axis that there is not.
    """
    if SIZES.search(text):
        return dataclasses.replace(run, mesh=Mesh(**{"data": 1} | sizes_of(text)))
    layout = get(text)
    return dataclasses.replace(run, mesh=layout.mesh, rules=layout.rules)


def sizes_of(text: str) -> dict[str, int]:
    """The sizes that a text gives, those of a name too; axes of one device may be left out.

    Raises:
      UserError: see `laid_out`.
    """
    if not SIZES.search(text):
        sizes = dataclasses.asdict(get(text).mesh)
        return {axis: size for axis, size in sizes.items() if size != 1}
    axes = [field.name for field in dataclasses.fields(Mesh)]
    sizes = {}
    for part in text.split(","):
        axis, equals, size = (piece.strip() for piece in part.partition("="))
        if not equals or not re.fullmatch(r"-?[0-9]+", size):
            raise UserError(f"--mesh {text!r}: write AXIS=SIZE,AXIS=SIZE, e.g. fsdp=64,tensor=4")
        if axis not in axes:
            raise UserError(
                f"--mesh: no axis {axis!r}; there are {', '.join(axes)}{nearest(axis, axes)}"
            )
        if axis in sizes:
            raise UserError(f"--mesh {text!r} gives {axis} twice")
        sizes[axis] = int(size)
    return sizes
