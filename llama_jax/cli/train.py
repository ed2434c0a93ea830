"""The commands `llama-jax train` and `llama-jax rehearse`."""

import argparse
import contextlib
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llama_jax.cli.options import MESH, Add, named_run, override, own_code, set_field
from llama_jax.errors import Stopped, UserError
from llama_jax.streams import turned

if TYPE_CHECKING:
    from llama_jax.config import Run


class _Help(argparse.Action):
    """`--help`, which for a preset shows its fields too."""

    def __call__(self, parser: Any, namespace: Any, values: Any, option_string: Any = None):
        parser.print_help()
        if namespace.preset is not None:
            from llama_jax.cli.options import described
            from llama_jax.config.user_code import use

            use(namespace.imports)
            print(f"\nfields of {namespace.preset}:")
            print("\n".join(described(named_run(namespace.preset))))
        parser.exit()


def add(command: Add) -> None:
    """Adds the commands to the command line."""
    train = command("train", _train, "train a preset, or go on with a run", add_help=False)
    train.add_argument(
        "-h", "--help", action=_Help, nargs=0, help="show this; after PRESET its fields too"
    )
    train.add_argument(
        "preset",
        metavar="PRESET",
        help="a name that `llama-jax presets` lists, or your own: my_run.py:run",
    )
    of_a_run(train)
    _several(train.add_argument_group("several processes"))
    train.epilog = (
        "Any field of the run is an option too, such as --init-from WEIGHTS (begin with the "
        "weights of a run or of others), --optimizer.rate 3e-4, --optimizer muon, --seed "
        "4, --dtype bfloat16. `llama-jax train PRESET --help` shows them all."
    )

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


def of_a_run(parser: argparse.ArgumentParser) -> None:
    """Adds the options that every command that trains has."""
    parser.add_argument("--run-dir", required=True, type=Path, help="where everything is written")
    parser.add_argument("--steps", type=int, help="optimizer steps in all")
    parser.add_argument("--mesh", metavar="MESH", help=MESH)
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="PATH=VALUE",
        help="the same as --PATH VALUE; may be given again",
    )
    own_code(parser)
    parser.add_argument("--quiet", action="store_true", help="no progress on standard error")
    parser.add_argument("--cache", type=Path, help="keep compiled programs here: a faster start")
    parser.add_argument("--profile", metavar="START:STOP", help="trace these steps for XProf")
    parser.add_argument("--wandb", metavar="PROJECT", help="log to W&B too (first: wandb login)")
    parser.add_argument(
        "--continue-with",
        action="append",
        default=[],
        metavar="PATH=VALUE",
        help="change a field of a run that goes on: rate, batch, mixture, ...; may be given again",
    )
    parser.add_argument("--allow-pickle", action="store_true", help="begin with Meta's .pth files")
    parser.add_argument("--options", action="store_true", help="list every field of the run")
    parser.set_defaults(overrides=[])  # options that are fields


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
    run = given(args, named_run(args.preset))
    if args.options:
        show(run)
    else:
        carry_out(args, run)


def show(run: "Run") -> None:
    """Prints every field of a run as an option."""
    from llama_jax.config import leaves

    for path, value in leaves(run):
        print(f"--{path} {value!r}")


def carry_out(args: argparse.Namespace, run: "Run") -> None:
    """Trains a run as the options of the command say.

    Raises:
      UserError: anything that the user can mend.
      Stopped: a signal ended it; what it had done is saved.
    """
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
        from llama_jax.train.continued import parsed
        from llama_jax.train.init_from import trusting
        from llama_jax.train.loop import train

        joined.enter_context(trusting(args.allow_pickle))

        changes = parsed(args.continue_with)
        result = train(run, args.run_dir, None, not args.quiet, profile, args.wandb, changes)
    if result.stopped:
        raise Stopped(result.stopped)


def given(args: argparse.Namespace, run: "Run") -> "Run":
    """The run with the fields that the command gives.

    Raises:
      UserError: no such field, or a value that is none of its.
    """
    if args.mesh is not None:
        from llama_jax.presets.meshes import laid_out

        run = laid_out(run, args.mesh)
    if args.steps is not None:
        args.set.append(f"steps={args.steps}")
    known = [o for action in args.parser._actions for o in action.option_strings]
    run = override(run, args.overrides, known)
    for text in args.set:
        run = set_field(run, text)
    return run


def _rehearse(args: argparse.Namespace) -> int:
    from llama_jax.cli.rehearse import rehearse

    return rehearse(args.command, args.processes, args.devices, args.steps, args.timeout, args.set)
