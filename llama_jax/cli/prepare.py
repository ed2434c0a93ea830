"""The command `llama-jax prepare`."""

import argparse
import sys
from pathlib import Path

from llama_jax.cli.options import Add, own_code
from llama_jax.files import at_home


def add(command: Add) -> None:
    """Adds the command to the command line."""
    prepare = command("prepare", _prepare, "tokenise a source once, into a folder to train from")
    prepare.add_argument("source", help="a file, a 'pattern*.jsonl', a folder or a TFDS name")
    prepare.add_argument("out", type=Path, help="a folder; the same command goes on after a stop")
    words = prepare.add_mutually_exclusive_group(required=True)
    words.add_argument("--tokenizer", help="a tokenizer's file or folder, a run, or weights")
    words.add_argument("--vocab", type=int, help="train a tokenizer of so many ids on the source")
    prepare.add_argument("--field", help="of a row; else 'text', else 'sentences'")
    prepare.add_argument(
        "--held-out",
        type=float,
        default=0.0,
        metavar="SHARE",
        help="of documents, such as 0.02: they go into OUT/held_out, to measure runs on",
    )
    prepare.add_argument("--workers", type=int, help="processes; else one a core")
    prepare.add_argument("--quiet", action="store_true", help="no progress on standard error")
    own_code(prepare)


def _prepare(args: argparse.Namespace) -> None:
    from llama_jax.data import Share
    from llama_jax.data import prepare as preparing
    from llama_jax.data.held_out import NAME
    from llama_jax.data.manifest import Manifest
    from llama_jax.data.sources import named
    from llama_jax.text.files import MAIN, files_of, open_for_training

    workers, source = preparing.processes(args.workers), named(args.source)
    if args.vocab is not None:
        words = preparing.trained(source, args.vocab, args.field, args.out)
        files = preparing.files_of_trained(words, args.out)
    else:
        place = at_home(args.tokenizer)
        if place.suffix in (".json", ".model") or any((place / n).is_file() for n in MAIN):
            words, files = open_for_training(place), files_of(place)
        else:
            from llama_jax.train.from_weights import tokenizer_of

            words, files = tokenizer_of(args.tokenizer)

    def say(text: str) -> None:
        if not args.quiet:
            print(text, file=sys.stderr, flush=True)

    share, held = Share(args.held_out), 0
    made = preparing.prepare(source, args.out, words, files, args.field, workers, say, share)
    if share.share:
        held = Manifest.read(args.out / NAME).documents
        say(f"{args.out / NAME}: {held:,} documents are held out")
    print(
        f"{args.out}: {made.documents:,} documents, {made.tokens:,} tokens of {made.vocab:,} ids, "
        f"{len(made.shards)} shards, {made.empty - held:,} empty; tokenizer {made.tokenizer[:12]}"
    )
