"""The command `llama-jax ask`: one text interface for all tasks that a run was trained for."""

import argparse
import json
import sys
from pathlib import Path

from llama_jax.cli.generate import shown
from llama_jax.cli.options import Add, own_code, read_text, seen, unicode
from llama_jax.errors import UserError
from llama_jax.messages import cut

TRY = "llama-jax ask RUN_DIR 'translate to German: five'"


def add(command: Add) -> None:
    """Adds the command to the command line."""
    ask = command("ask", _ask, "let a run translate, summarise, classify, answer: what a text says")
    ask.add_argument("run_dir", type=Path)
    ask.add_argument("text", nargs="?", help='what to do, such as "translate to German: five"')
    ask.add_argument("--input", type=Path, metavar="FILE", help="a text a line, answers a line")
    seen(ask, "that the text is about")
    ask.add_argument("--beam", type=int, default=1, metavar="N", help="beams of the search (1)")
    ask.add_argument("--json", action="store_true", help="one JSON object a text")
    own_code(ask)
    ask.set_defaults(overrides=[])  # where argparse of Python 3.11 leaves a text after options


def _ask(args: argparse.Namespace) -> None:
    texts = _texts(args)
    from llama_jax.evals.ask import replies, unknown
    from llama_jax.train.load import load

    trained = load(args.run_dir)
    told = args.image is None and args.video is None
    given = replies(trained, texts, args.image, args.beam, args.video)
    for number, reply in enumerate(given, 1):
        where = f"line {number}: " if args.input else ""
        if told and reply.text.strip() and (said := unknown(trained.run, reply.text)):
            _say(f"{where}{said}")
            told = False  # once is enough
        if reply.left_out:
            _say(
                f"{where}{cut(reply.text, 40)!r} is too long: {reply.left_out} tokens are not read"
            )
        if args.json:
            fields = {"text": reply.text, "answer": reply.answer, "logprob": reply.logprob}
            print(json.dumps(fields, ensure_ascii=False))
        else:
            print(" ".join(shown(reply.answer).splitlines()))


def _texts(args: argparse.Namespace) -> list[str]:
    text, left = args.text, list(args.overrides)
    if text is None and left and not left[0].startswith("--"):
        text = left.pop(0)
    if left:
        raise UserError(f"unknown option {left[0]!r}; see llama-jax ask --help")
    if text is not None and args.input is not None:
        raise UserError(f"expected a text or --input FILE, and both came; try {TRY}")
    if text is not None:
        if not text.strip():
            raise UserError(f"the text is empty; expected what to do; try {TRY}")
        return [unicode(text)]
    if args.input is None:
        raise UserError(f"expected a text or --input FILE, and neither came; try {TRY}")
    if not (lines := read_text(args.input)):
        raise UserError(f"{args.input} is empty; expected a text a line, such as that of {TRY}")
    return lines.removesuffix("\n").split("\n")


def _say(line: str) -> None:
    print(f"llama-jax: {line}", file=sys.stderr)
