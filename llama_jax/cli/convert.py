"""The command `llama-jax convert`."""

import argparse
import contextlib
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

from llama_jax.cli.options import Add, links, own_code


def add(command: Add) -> None:
    """Adds the command to the command line."""
    convert = command("convert", _convert, "write a checkpoint in another format")
    convert.add_argument("src", type=Path, help="a folder of weights, a .gguf file or a run")
    convert.add_argument("dst", type=Path, help="a folder or .gguf file that is not there yet")
    convert.add_argument("--to", required=True, choices=["huggingface", "gguf", "orbax"])
    convert.add_argument("--dtype", help="float32, bfloat16, float16 or q8_0; else as they are")
    convert.add_argument("--allow-pickle", action="store_true", help="open Meta's .pth files")
    links(convert)
    own_code(convert)


def _convert(args: argparse.Namespace) -> None:
    """Shows a bar on standard error, and says in a line what came out."""
    from llama_jax.weights.convert import convert

    with _bar() as progress:
        source = convert(args.src, args.dst, args.to, args.dtype, args.allow_pickle, progress, _say)
    _say(f"{source.kind} checkpoint {args.src} is now {args.dst}, {args.to}")


def _say(line: str) -> None:
    print(f"llama-jax: {line}", file=sys.stderr)


@contextlib.contextmanager
def _bar() -> Iterator[Callable]:
    """A bar over the tensors; nothing if standard error is no terminal."""
    from rich.console import Console
    from rich.progress import Progress

    with Progress(
        console=Console(stderr=True), transient=True, disable=not sys.stderr.isatty()
    ) as bar:
        yield lambda names: bar.track(list(names), description="tensors")
