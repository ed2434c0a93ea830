"""The commands of a run that has been trained, eval and answer, and the demo that trains some."""

import argparse
from pathlib import Path

from llama_jax.cli.options import Add, own_code, seen


def add(command: Add) -> None:
    """Adds the commands to the command line."""
    evaluate = command("eval", _eval, "evaluate a run on its test data")
    evaluate.add_argument("run_dir", type=Path)
    evaluate.add_argument("--json", action="store_true", help="print JSON instead of a table")
    which = evaluate.add_mutually_exclusive_group()
    which.add_argument("--step", type=int, metavar="N", help="of this step; else of the newest")
    which.add_argument("--best", action="store_true", help="of the step that keep_best kept")
    evaluate.add_argument("--limit", type=int, metavar="N", help="about N examples of each test")
    own_code(evaluate)

    answer = command("answer", _answer, "answer a question about a picture or a video")
    answer.add_argument("run_dir", type=Path)
    seen(answer, "that the question is about")
    answer.add_argument("--question", required=True, metavar="TEXT")
    own_code(answer)

    demo = command("demo", _demo, "pre-train, fine-tune and evaluate on real pictures, in minutes")
    demo.add_argument("--run-dir", type=Path, default=Path("runs/demo"))


def _eval(args: argparse.Namespace) -> None:
    from llama_jax.evals import run_eval

    step = "best" if args.best else args.step
    run_eval(args.run_dir, json=args.json, limit=args.limit, step=step)


def _answer(args: argparse.Namespace) -> None:
    from llama_jax.evals.answer import answer

    print(answer(args.run_dir, args.image, args.question, args.video))


def _demo(args: argparse.Namespace) -> None:
    from llama_jax.demo import main as demo

    demo(args.run_dir)
