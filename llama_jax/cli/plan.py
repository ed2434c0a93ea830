"""`llama-jax plan`: its options, and what it prints."""

import argparse
import logging
from collections.abc import Callable
from typing import Any

from llama_jax.errors import UserError, nearest

AXES = ("data", "fsdp", "tensor", "context", "expert", "stage")


def add(command: Callable[..., argparse.ArgumentParser]) -> None:
    """Adds the command; `command(name, run, text)` makes a parser."""
    plan = command("plan", _plan, "plan training, or decoding, on a pod that is not there")
    plan.add_argument("what", nargs="+", metavar="PRESET", help="PRESET, or: decode PRESET")
    plan.add_argument(
        "--topology", required=True, help="v6e:16x16, v5p:8x8x8, h100:8, h100:32x8, v6e:16x16:2"
    )
    plan.add_argument("--sequence", type=int, help="tokens of a row (decode: of the context)")
    plan.add_argument("--batch", type=int, help="rows a step of all chips together")
    plan.add_argument("--mesh", help="e.g. fsdp=64,tensor=4; one size may be -1")
    plan.add_argument("--remat", help="what the backward pass computes again")
    plan.add_argument(
        "--search", action="store_true", help="choose what is not given (default without --mesh)"
    )
    plan.add_argument(
        "--full", action="store_true", help="compile with all optimizations: three times as long"
    )
    plan.add_argument("--json", action="store_true", help="one JSON object on the last line")


def _plan(args: argparse.Namespace) -> None:
    from llama_jax.plan.environment import set_environment
    from llama_jax.plan.topology import parse

    topology = parse(args.topology)
    mesh = mesh_of(args.mesh)
    decode = args.what[0] == "decode"
    if len(args.what) != 1 + decode:
        raise UserError(f"plan {' '.join(args.what)}: expected PRESET, or decode PRESET")
    if decode and args.remat is not None:
        raise UserError("--remat is for training: decoding has no backward pass; leave it out")
    for name in ("sequence", "batch"):
        if getattr(args, name) is not None and getattr(args, name) < 1:
            raise UserError(f"--{name} {getattr(args, name)}: give 1 or more")
    set_environment(topology.chip.gpu)
    # The report says who computes what, fallbacks too.
    logging.getLogger("llama_jax.kernels.backends").setLevel(logging.ERROR)
    import jax

    # What is compiled for absent devices cannot be loaded again.
    jax.config.update("jax_enable_compilation_cache", False)
    if decode:
        from llama_jax.plan.decode import command

        command(args.what[1], topology, args)
        return
    _train(args.what[0], topology, mesh, args)


def mesh_of(text: str | None) -> dict[str, int] | None:
    """The sizes in a text such as "fsdp=64,tensor=4"; None for none.

    Raises:
      UserError: another form, or an axis that there is not.
    """
    if text is None:
        return None
    sizes: dict[str, int] = {}
    for part in text.split(","):
        axis, equals, size = part.strip().partition("=")
        if not equals or not size.lstrip("-").isdigit():
            raise UserError(f"--mesh {text!r}: write AXIS=SIZE,AXIS=SIZE, e.g. fsdp=64,tensor=4")
        if axis not in AXES:
            raise UserError(
                f"--mesh: no axis {axis!r}; there are {', '.join(AXES)}{nearest(axis, AXES)}"
            )
        if axis in sizes:
            raise UserError(f"--mesh {text!r} gives {axis} twice")
        sizes[axis] = int(size)
    return sizes


def _train(preset: str, topology: Any, mesh: dict[str, int] | None, args: Any) -> None:
    import json
    import sys
    import time

    from llama_jax import presets
    from llama_jax.plan.candidates import fixed
    from llama_jax.plan.program import FULL, QUICK, changed
    from llama_jax.plan.report import as_json, lines
    from llama_jax.plan.search import search

    run = changed(presets.get(preset), sequence=args.sequence, remat=args.remat)
    sizes = None if mesh is None else fixed(mesh, topology)
    began = time.perf_counter()
    found = search(
        topology,
        run,
        topology.devices(),
        sizes,
        args.remat,
        args.batch,
        FULL if args.full else QUICK,
        lambda text: print(text, file=sys.stderr, flush=True),
    )
    seconds = time.perf_counter() - began
    print("\n".join(lines(topology, preset, found, seconds)))
    if args.json:
        print(json.dumps(as_json(topology, preset, found.best[0], seconds)))
