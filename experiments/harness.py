"""What runs the variants of an experiment, evaluates them and prints the table of its docstring."""

import argparse
import dataclasses
import json
import statistics
from collections.abc import Callable, Mapping
from pathlib import Path

from llama_jax.config import Run
from llama_jax.errors import UserError
from llama_jax.evals import evaluate
from llama_jax.train.load import load
from llama_jax.train.loop import train


def main(
    name: str,
    variants: Callable[[], Mapping[str, Run]],
    columns: tuple[str, ...],
    prepare: Callable[[Path], None] | None = None,
    seeds: tuple[int, ...] = (0,),
) -> None:
    """The command line of an experiment: trains what is not done yet, prints a Markdown table.

    Args:
      name: of the experiment; its runs are in runs/<name>/<variant>/<seed>.
      variants: name -> Run; `init_from` may name a folder that `prepare` makes.
      columns: names of evaluation rows, e.g. "vqa_accuracy".
      prepare: makes what the variants share, in runs/<name>.
      seeds: of weights and data order; a cell is mean (lowest to highest).
    """
    parser = argparse.ArgumentParser(prog=f"python -m experiments.{name}")
    parser.add_argument("--variant", action="append", choices=list(variants()), default=None)
    parser.add_argument("--seeds", type=int, nargs="+", default=list(seeds))
    parser.add_argument("--steps", type=int, default=None, help="in place of each variant's own")
    parser.add_argument("--out", type=Path, default=Path("runs") / name)
    args = parser.parse_args()
    lines = []
    try:
        if prepare:
            prepare(args.out)
        for variant in args.variant or variants():
            found = [
                measure(variants()[variant], args.out / variant / str(seed), seed, args.steps)
                for seed in args.seeds
            ]
            cells = [_cell([result.get(column) for result in found]) for column in columns]
            lines.append([variant, *cells])
    except UserError as error:
        parser.error(str(error))
    print(f"| variant | {' | '.join(columns)} |")
    print("|---" * (len(columns) + 1) + "|")
    for line in lines:
        print(f"| {' | '.join(line)} |", flush=True)


def measure(run: Run, place: Path, seed: int, steps: int | None = None) -> dict[str, float]:
    """Trains one run to its end and evaluates it; a finished one is only read again."""
    results = place / "results.json"
    if not results.exists():
        train(dataclasses.replace(run, seed=seed), place, steps)
        rows = {row.name: row.value for row in evaluate(load(place))}
        results.write_text(json.dumps(rows, indent=1))
    return json.loads(results.read_text())


def _cell(values: list[float | None]) -> str:
    known = [value for value in values if value is not None]
    if not known:
        return "-"
    mean = f"{statistics.fmean(known):.4g}"
    return mean if len(known) == 1 else f"{mean} ({min(known):.4g} to {max(known):.4g})"
