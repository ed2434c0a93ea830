"""One process of several that train the tiny run: python -m tests.chaos.member RUN_DIR TEXT JSON.

The JSON object may have `steps`, `mesh` (axis -> size), `rate`, `send` ([step, signal]: to process
1) and `undivided` (every process reads the first part of the rows).
"""

import json
import sys
from pathlib import Path

from llama_jax.config import Mesh, edit
from llama_jax.errors import UserError
from llama_jax.train import loop, setup
from llama_jax.train.cluster import Cluster, member
from tests.train.tiny import Send, saved_before, text_run

STEPS = 20


def run_of(text: Path, options: dict, place: str = ""):
    """The run of a process, or of one that is alone."""
    run = text_run(text, save_every=5, keep=9, steps=options.get("steps", STEPS))
    run = edit(run, "mesh", Mesh(**options.get("mesh", {})))
    run = edit(run, "optimizer.rate", options.get("rate", 1e-2))
    if "send" in options:
        path = saved_before(run, place, options["send"][0])
        return edit(run, "evaluations", {"send": Send(*options["send"], path=path, process=1)})
    return run


def main() -> int:
    place, text, options = sys.argv[1], Path(sys.argv[2]), json.loads(sys.argv[3])
    if options.get("undivided"):
        loader = setup.Loader
        setup.Loader = lambda data, words, seed, part, *more: loader(data, words, seed, 0, *more)
    try:
        with member(Cluster()):
            loop.train(run_of(text, options, place), place)
    except UserError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
