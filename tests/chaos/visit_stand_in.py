"""A worker for a device that is not there: its cases end, fail, hang and end the process."""

import argparse
import os
import time
from pathlib import Path

from experiments.visit.worker import Case, Notes, Ready, Wrong, work


def wrong(compiled):
    raise Wrong("dq is off by 3.0e-01 of its norm")


def hang(compiled):
    time.sleep(60)


def die(compiled):
    os._exit(139)


CASES = {
    "first": lambda compiled: {"TFLOP/s": "600"},
    "wrong": wrong,
    "hangs": hang,
    "dies": die,
    "last": lambda compiled: {"TFLOP/s": "500"},
}

if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--part")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--skip", action="append", default=[])
    args = parser.parse_args()
    group = [Case(name, 2, lambda run=run: Ready({}, run)) for name, run in CASES.items()]
    work([group], set(args.skip), Notes(args.out / "results.jsonl"))
