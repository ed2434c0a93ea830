"""The command `llama-jax finetune`."""

import argparse
import dataclasses
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from llama_jax.cli.options import Add, links
from llama_jax.cli.train import carry_out, given, of_a_run, show

if TYPE_CHECKING:
    from llama_jax.config import Run

ONE = {"distributed": False, "coordinator": None, "processes": None}  # process
ONE |= {"process_id": None, "join_timeout": None}


def add(command: Add) -> None:
    """Adds the command to the command line."""
    finetune = command("finetune", _finetune, "train weights that there are on your data")
    finetune.add_argument(
        "weights", metavar="WEIGHTS", help="a Hugging Face folder, a .gguf file, a run, or smollm2"
    )
    finetune.add_argument(
        "data", metavar="DATA", help="texts, or .jsonl or .parquet with 'text', or with two fields"
    )
    of_a_run(finetune)
    finetune.add_argument("--epochs", type=float, help="how often the data are read (3)")
    finetune.add_argument(
        "--fields", metavar="NAME[,NAME]", help="of the texts; or of what is given, what is written"
    )
    links(finetune)
    finetune.set_defaults(**ONE)
    finetune.epilog = (
        "Model, tokenizer and all numbers come from WEIGHTS and DATA; any field of the run is an "
        "option too, such as --optimizer.rate 1e-5, --data.text.batch 4, --data.text.held_out 0.1. "
        "`--options` lists them. The same command again goes on after a stop."
    )


def _finetune(args: argparse.Namespace) -> None:
    run, begun = _run(args)
    if args.options:
        show(run)
        return
    if not begun:
        from llama_jax.plan.here import fitted

        run = fitted(run, _teller(args))
    carry_out(args, run)
    if not args.quiet:
        _tell(args.run_dir)


def _run(args: argparse.Namespace) -> "tuple[Run, bool]":
    """What to train, and whether it was begun already."""
    from llama_jax.train.finetune import EPOCHS, begun, followed, tuned

    run = begun(args.run_dir, args.weights, args.data)
    if run is not None and args.epochs is None and args.fields is None:
        return given(args, run), True
    epochs = EPOCHS if args.epochs is None else args.epochs
    fields = tuple(filter(None, (args.fields or "").split(",")))
    pickle = args.allow_pickle
    before = tuned(args.weights, args.data, epochs, fields, _teller(args), pickle=pickle)
    new = followed(before, given(args, before), epochs, pickle)
    if run is None:
        return new, False
    kept = {"model": run.model, "accumulate": run.accumulate, "init_from": run.init_from}
    return dataclasses.replace(new, **kept), True


def _teller(args: argparse.Namespace) -> Callable[[str], None]:
    return lambda line: None if args.quiet else _say(line)


def _say(line: str) -> None:
    print(f"llama-jax: {line}", file=sys.stderr)


def _tell(run_dir: Path) -> None:
    from llama_jax.train.finetune import before_and_after

    if (losses := before_and_after(run_dir)) is not None:
        _say(f"loss on what was held out: {losses[0]:.4f} before, {losses[1]:.4f} now")
    _say(f"try it: llama-jax generate --weights {run_dir} --prompt TEXT")
    _say(f"write it: llama-jax convert {run_dir} OUT --to huggingface")
