"""The command that carries a plan out, as it is printed."""

import shlex
from collections.abc import Sequence
from typing import Any

from llama_jax import presets
from llama_jax.axes import FSDP_TENSOR_RESIDUAL
from llama_jax.config import File, Run, children
from llama_jax.config.user_code import names_code, run_of
from llama_jax.plan.program import stacks
from llama_jax.plan.topology import Topology
from llama_jax.presets.meshes import laid_out


def launch(topology: Topology, preset: str, run: Run, given: Sequence[str] = ()) -> str:
    """The command that trains by a plan, once on every host.

    Args:
      topology: planned for.
      preset: the name of the preset.
      run: the Run of the plan.
      given: fields that were set beside, each "path=value"; those of the plan come after them.
    """
    before = run_of(preset) if names_code(preset) else presets.get(preset)
    wide = run.rules == FSDP_TENSOR_RESIDUAL != before.rules
    was = laid_out(before, "residual").mesh if wide else before.mesh
    sets: dict[str, Any] = {
        f"mesh.{axis}": size
        for axis, size in children(run.mesh).items()
        if size != getattr(was, axis) or axis in ("data", "fsdp")
    }
    for path, stack in stacks(run.model).items():
        sets[f"{path}.remat"] = stack.remat
        if stack.remat in ("named", "offload"):
            sets[f"{path}.saved"] = repr(stack.saved).replace(" ", "")
    for stream, data in run.data.items():
        sets[f"data.{stream}.batch"] = data.batch
        if hasattr(data.task, "length"):
            sets[f"data.{stream}.task.length"] = data.task.length
    words = ["llama-jax", "train", preset, "--run-dir", f"runs/{run.name}"]
    words += ["--mesh", "residual"] if wide else []
    words += ["--distributed"] if topology.hosts > 1 else []
    every = [*given, *(f"tokenizer={name}" for name in wanted(run))]
    every += [f"{path}={value}" for path, value in sets.items()]
    words += [word for text in every for word in ("--set", text)]
    memory = "XLA_PYTHON_CLIENT_MEM_FRACTION=.92 " if topology.chip.gpu else ""
    return memory + shlex.join(words)


def wanted(run: Run) -> list[str]:
    """What a run has to be told before it can start: "TOKENIZER" where it names none."""
    named = run.tokenizer
    open_ = isinstance(named, File) and not named.path and not run.init_from
    return ["TOKENIZER"] if open_ else []
