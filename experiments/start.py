"""How long is it from the command to the first step of a 135M model, and what takes the time?

Command:  python -m experiments.start
Machine:  2 CPU cores, float32, random weights, a few documents, 1 row of 128 tokens

Seconds:

| start | import | data | plan | init | trace | compile | step | all | cpu |
|---|---|---|---|---|---|---|---|---|---|
| 1 | 1.0 | 0.8 | 0.0 | 1.2 | 1.1 | 5.0 | 1.9 | 10.7 | 17.0 |
| 2 | 1.1 | 0.7 | 0.0 | 1.1 | 1.2 | 0.2 | 1.5 | 5.7 | 8.0 |
| 3 | 1.0 | 0.7 | 0.0 | 1.9 | 1.1 | 0.2 | 1.5 | 6.4 | 9.2 |

Verdict: a second start compiles nothing and takes its first step after 5.7 s.

Each start is a process of its own with a run directory of its own; the cache of compiled programs
is empty in the first and kept in the others. "compile" is XLA or reading the cache; "step" includes
dispatching and running the first step; parts within parts are counted twice; "cpu" is processor
time, that of all threads, which other programs on the machine disturb less.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

PARTS = ("import", "data", "plan", "init", "trace", "compile", "step", "all", "cpu")
TEXT = "\n\n".join(f"Lamb {i} went to {i % 7} places and saw the sea." for i in range(500))


def main() -> None:
    """Starts several times and prints a table."""
    parser = argparse.ArgumentParser(prog="python -m experiments.start")
    parser.add_argument("--starts", type=int, default=3)
    parser.add_argument("--preset", default="smollm2_135m")
    parser.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        print(json.dumps(_timed(args.preset, Path(args.child[0]), float(args.child[1]))))
        return
    print(f"| start | {' | '.join(PARTS)} |")
    print("|---" * (len(PARTS) + 1) + "|")
    with tempfile.TemporaryDirectory() as folder:
        _prepare(Path(folder))
        for start in range(args.starts):
            found = _child(args.preset, folder)
            cells = (f"{found[part]:.1f}" for part in PARTS)
            print(f"| {start + 1} | {' | '.join(cells)} |", flush=True)


def _prepare(folder: Path) -> None:
    """A text, and the tokenizer that a user would have in a file."""
    from llama_jax import edit, presets
    from llama_jax.train.init_from import Start

    (folder / "text.txt").write_text(TEXT)
    (folder / "tokenizer").mkdir()
    run = edit(presets.get("smollm2_135m"), "init_from", "smollm2")
    for name, content in Start.of(run).tokenizer()[1].items():
        (folder / "tokenizer" / name).write_bytes(content)


def _child(preset: str, folder: str) -> dict[str, float]:
    words = [sys.executable, "-m", "experiments.start", "--preset", preset, "--child", folder]
    environment = os.environ | {
        "JAX_COMPILATION_CACHE_DIR": str(Path(folder, "cache")),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.3",  # as __main__ sets it
    }
    done = subprocess.run(
        [*words, str(time.time())], env=environment, capture_output=True, text=True, check=False
    )
    if done.returncode:
        sys.exit(done.stderr)
    return json.loads(done.stdout.splitlines()[-1])


def _timed(preset: str, folder: Path, begin: float) -> dict[str, float]:
    """Trains one step; returns the seconds of each part."""
    import jax

    from llama_jax import edit, presets
    from llama_jax.train import loop, setup, step

    found: dict[str, float] = dict.fromkeys(PARTS, 0.0)
    found["import"] = time.time() - begin
    inner = {"trace": 0.0, "compile": 0.0}

    def heard(event: str, duration_secs: float, **_: Any) -> None:
        # Of JAX's own events: what it says about tracing and lowering, and about compiling.
        if "trace_duration" in event or "to_mlir" in event:
            inner["trace"] += duration_secs
        elif "backend_compile" in event:
            inner["compile"] += duration_secs

    jax.monitoring.register_event_duration_secs_listener(heard)

    def timed(name: str, function: Any) -> Any:
        def call(*args: Any, **named: Any) -> Any:
            before, start = sum(inner.values()), time.time()
            out = jax.block_until_ready(function(*args, **named))
            found[name] += time.time() - start - (sum(inner.values()) - before)
            return out

        return call

    make = step.make_train_step

    def make_train_step(*args: Any) -> Any:
        taken = timed("step", make(*args))

        def once(*args: Any) -> Any:
            out = taken(*args)
            found["all"] = found["all"] or time.time() - begin
            found["cpu"] = found["cpu"] or time.process_time()
            return out

        return once

    step.make_train_step = make_train_step
    parts = {"_tokenizer": "data", "Loader": "data", "plan": "plan", "_begin": "init"}
    for name, part in parts.items():
        setattr(setup, name, timed(part, getattr(setup, name)))
    run = edit(presets.get(preset), "data.text.source", str(folder / "text.txt"))
    run = edit(edit(run, "data.text.batch", 1), "data.text.task.length", 128)
    run = edit(edit(run, "tokenizer", str(folder / "tokenizer")), "dtype", "float32")
    with tempfile.TemporaryDirectory(dir=folder) as place:
        loop.train(run, place, steps=1, progress=False)
    found |= inner
    return found


if __name__ == "__main__":
    main()
