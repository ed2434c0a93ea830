"""The command `llama-jax verify`."""

import argparse
import sys
from pathlib import Path

from llama_jax.cli.options import Add, links, own_code, read_text
from llama_jax.errors import UserError


def add(command: Add) -> None:
    """Adds the command to the command line."""
    parser = command("verify", _verify, "check that pretrained weights are read as they should be")
    parser.epilog = (
        "Exit status: 0 all checks passed, 1 one failed, 2 nothing to check or a wrong option."
    )
    parser.add_argument("place", nargs="?", metavar="WEIGHTS", help="folder, file or owner/name")
    parser.add_argument("--weights", metavar="PATH", help="the same (default: SmolLM2-135M)")
    parser.add_argument("--text", type=Path, metavar="FILE", help="a UTF-8 text to try them on")
    parser.add_argument(
        "--against", default="transformers", metavar="PROGRAM", help="transformers or none"
    )
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    parser.add_argument("--allow-pickle", action="store_true", help="read Meta's .pth files")
    links(parser)
    parser.add_argument("--quiet", action="store_true", help="no progress on standard error")
    own_code(parser)


def _verify(args: argparse.Namespace) -> int:
    if args.place is not None and args.weights is not None:
        raise UserError(f"weights named twice, {args.place} and {args.weights}; give one of them")
    text = None if args.text is None else read_text(args.text)
    from llama_jax.cli.generate import bar, shown
    from llama_jax.verify.checks import verify

    show = sys.stderr.isatty() and not args.quiet
    ledger = verify(
        args.weights if args.place is None else args.place,
        text,
        args.against,
        args.dtype,
        args.allow_pickle,
        progress=bar if show else iter,
        say=(lambda line: print(f"{line} ...", file=sys.stderr)) if show else lambda line: None,
    )
    # Names come out of files; a terminal should not obey them.
    print(ledger.json() if args.json else shown(ledger.text()))
    return int(ledger.failed)
