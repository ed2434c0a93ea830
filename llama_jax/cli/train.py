"""The commands `llama-jax train` and `llama-jax rehearse`."""

import argparse
import contextlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llama_jax.errors import Stopped, UserError
from llama_jax.streams import turned

if TYPE_CHECKING:
    from llama_jax.config import Run


def add(command: Callable[..., argparse.ArgumentParser]) -> None:
    """Adds the commands; `command(name, run, text)` makes a parser."""
    train = command("train", _train, "train a preset, or go on with a run")
    train.add_argument("preset", help="a name that `llama-jax presets` lists")
    train.add_argument("--run-dir", required=True, type=Path, help="where everything is written")
    train.add_argument("--steps", type=int, help="optimizer steps in all")
    train.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="PATH=VALUE",
        help="replace one field, e.g. model.stack.repeats=2; may be given again",
    )
    train.add_argument(
        "--mesh",
        metavar="NAME",
        help="data, fsdp, fsdp_tensor, residual, tensor, context or pipeline; then sizes: "
        "--mesh.fsdp 4",
    )
    train.add_argument("--quiet", action="store_true", help="no progress on standard error")
    train.add_argument("--cache", type=Path, help="keep compiled programs here: a faster start")
    train.add_argument("--profile", metavar="START:STOP", help="trace these steps for XProf")
    train.add_argument("--wandb", metavar="PROJECT", help="log to W&B too; WANDB_API_KEY is set")
    _several(train.add_argument_group("several processes"))
    train.add_argument("--options", action="store_true", help="list every field of the preset")
    train.set_defaults(overrides=[])  # options that are fields
    train.epilog = "Any field is an option too: --optimizer.rate 3e-4 --objectives.mlm.weight 0.5"

    rehearse = command("rehearse", _rehearse, "run a pod's command here, on simulated devices")
    rehearse.add_argument("command", help="a shell script, or a train command after --")
    rehearse.add_argument("--processes", type=int, default=2)
    rehearse.add_argument("--devices", type=int, default=4, help="of each process")
    rehearse.add_argument("--steps", type=int, default=3)
    rehearse.add_argument("--timeout", type=float, default=600, help="seconds for each run")
    rehearse.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="PATH=VALUE",
        help="make it fit this machine, e.g. model.stack.repeats=2",
    )


def _several(group: Any) -> None:
    """The options of `train/cluster.py`."""
    group.add_argument(
        "--distributed",
        action="store_true",
        help="this is one process of several; found by itself on a TPU pod, SLURM, GKE, Open MPI",
    )
    group.add_argument("--coordinator", metavar="HOST:PORT", help="where process 0 is")
    group.add_argument("--processes", type=int, help="how many there are")
    group.add_argument("--process-id", type=int, help="which this is, from 0")
    group.add_argument("--join-timeout", type=int, help="seconds until all are here (300)")


def _train(args: argparse.Namespace) -> None:
    if os.environ.get("LLAMA_JAX_REHEARSAL"):
        from llama_jax.cli.rehearse import on_stage

        on_stage(args)
    run = _run(args)
    if args.options:
        from llama_jax.cli.options import leaves

        for path, value in leaves(run):
            print(f"--{path} {value!r}")
        return
    from llama_jax.train.cluster import Cluster, member
    from llama_jax.train.profile import Profile

    cluster = Cluster(args.coordinator, args.processes, args.process_id, args.join_timeout)
    if cluster != Cluster() and not args.distributed:
        raise UserError("options of several processes without --distributed; add it")
    profile = Profile.parse(args.profile) if args.profile else None
    if profile and profile.start > run.steps:
        raise UserError(f"profile {args.profile!r}: there are {run.steps} steps; give earlier ones")
    with contextlib.ExitStack() as joined:
        if args.distributed:
            # Gloo, which joins processes on CPUs, prints from C++; training prints nothing.
            joined.enter_context(turned(1, 2))
            joined.enter_context(member(cluster))
        from llama_jax.train.loop import train

        result = train(run, args.run_dir, None, not args.quiet, profile, args.wandb)
    if result.stopped:
        raise Stopped(result.stopped)


def _run(args: argparse.Namespace) -> "Run":
    from llama_jax import presets
    from llama_jax.cli.options import override, set_field

    run = presets.get(args.preset)
    if args.mesh is not None:
        from llama_jax.presets.meshes import laid_out

        run = laid_out(run, args.mesh)
    if args.steps is not None:
        args.set.append(f"steps={args.steps}")
    run = override(run, args.overrides)
    for text in args.set:
        run = set_field(run, text)
    return run


def _rehearse(args: argparse.Namespace) -> int:
    from llama_jax.cli.rehearse import rehearse

    return rehearse(args.command, args.processes, args.devices, args.steps, args.timeout, args.set)
