"""`llama-jax plan`: its options, and what it prints."""

import argparse
import dataclasses
import json
import logging
import sys
import time
from typing import TYPE_CHECKING, Any

from llama_jax.cli.options import MESH, Add, named_run, own_code
from llama_jax.errors import UserError

if TYPE_CHECKING:
    from llama_jax.plan.decode import DecodePlan
    from llama_jax.plan.topology import Topology


def add(command: Add) -> None:
    """Adds the command to the command line."""
    plan = command("plan", _plan, "plan training, or decoding, on a pod that is not there")
    plan.add_argument(
        "what", nargs="+", metavar="PRESET", help="PRESET or my_run.py:run, or: decode PRESET"
    )
    plan.add_argument(
        "--topology", required=True, help="v6e:16x16, v5p:8x8x8, h100:8, h100:32x8, v6e:16x16:2"
    )
    plan.add_argument("--sequence", type=int, help="tokens of a row (decode: of the context)")
    plan.add_argument("--batch", type=int, help="rows a step of all chips together")
    plan.add_argument("--mesh", metavar="MESH", help=MESH)
    plan.add_argument(
        "--remat",
        help="what the backward pass finds stored: none, block, dots, named or offload; the last "
        "two with names, as offload:input,q,k,v",
    )
    plan.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="PATH=VALUE",
        help="a field of the run, as for train, such as tokenizer=PATH; the launch line has it too",
    )
    plan.add_argument(
        "--search", action="store_true", help="choose what is not given (default without --mesh)"
    )
    plan.add_argument(
        "--full", action="store_true", help="compile with all optimizations: three times as long"
    )
    plan.add_argument("--json", action="store_true", help="one JSON object on the last line")
    own_code(plan)
    # The user's code may import jax, which must not be before its environment is set.
    plan.set_defaults(imports_later=True)


def _plan(args: argparse.Namespace) -> None:
    from llama_jax.plan.environment import set_environment
    from llama_jax.plan.topology import parse

    topology = parse(args.topology)
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
    from llama_jax.config.user_code import use

    use(args.imports)
    (_decode if decode else _train)(args.what[-1], topology, args)


def _mesh(run: Any, text: str | None) -> tuple[Any, dict[str, int] | None]:
    """The run with the rules of a mesh, and the sizes; None looks for the best."""
    from llama_jax.presets.meshes import laid_out, sizes_of

    if text is None:
        return run, None
    return dataclasses.replace(run, rules=laid_out(run, text).rules), sizes_of(text)


def _set(run: Any, given: list[str]) -> Any:
    """The run with fields set, as `train` sets them."""
    from llama_jax.cli.options import set_field

    for text in given:
        run = set_field(run, text)
    return run


def _decode(name: str, topology: "Topology", args: argparse.Namespace) -> None:
    from llama_jax.plan.decode import plan

    run, sizes = _mesh(_set(named_run(name), args.set), args.mesh)
    made = plan(
        run,
        topology,
        sizes,
        args.sequence,
        args.batch,
        lambda line: print(line, file=sys.stderr),
    )
    print("\n".join(_decoding(name, topology, made)))
    if args.json:
        print(json.dumps({"preset": name, "topology": str(topology), **made.found}))


def _decoding(preset: str, topology: "Topology", made: "DecodePlan") -> list[str]:
    """The report of a plan of decoding."""
    from llama_jax.chips import GIB

    best, found = made.best, made.found
    unit = topology.unit
    hbm = found["hbm_bytes_per_device"]
    out = [
        f"{preset} on {topology}: {found['mesh']['data']} replicas of {best.tensor} {unit}s, "
        f"{found['batch']:,} rows of {found['slots']:,} tokens (at most {found['most_rows']:,} "
        "fit)",
        "",
        f"HBM of a {unit}, GiB",
        *(f"  {part:10} {size / GIB:7.2f}" for part, size in hbm.items()),
        "",
        f"decode   {found['token_seconds'] * 1e3:.2f} ms a token, of which network "
        f"{found['network_seconds'] * 1e3:.2f}: {found['tokens_per_second_per_user']:,.1f} "
        f"tokens/s a user, {found['tokens_per_second_per_chip']:,.0f} a chip (caches half full)",
        f"prefill  {found['prefill_seconds_of_512'] * 1e3:,.0f} ms for 512 tokens of every row: "
        f"{found['prefill_tokens_per_second_per_chip']:,.0f} tokens/s a chip",
        "",
        f"{unit}s a replica, rows, tokens/s a user and a {unit} (from shapes, without the network)",
    ]
    for one in made.options:
        rate = f"{1 / one.seconds:8,.1f} {one.rows / one.seconds / one.tensor:10,.0f}"
        why = rate if one.rows else f"weights {one.weights / GIB:.1f} GiB a chip do not fit"
        out.append(f"  {one.tensor:3} {one.rows:6,} {why}")
    return [*out, "", "computed by", *(f"  {line}" for line in found["backends"])]


def _train(preset: str, topology: "Topology", args: argparse.Namespace) -> None:
    from llama_jax.plan.candidates import fixed
    from llama_jax.plan.program import FULL, QUICK, changed
    from llama_jax.plan.report import as_json, lines
    from llama_jax.plan.search import search

    run, sizes = _mesh(_set(named_run(preset), args.set), args.mesh)
    run = changed(run, sequence=args.sequence, remat=args.remat)
    sizes = None if sizes is None else fixed(sizes, topology)
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
    print("\n".join(lines(topology, preset, found, seconds, args.set)))
    if args.json:
        print(json.dumps(as_json(topology, preset, found.best[0], seconds, args.set)))
