"""Are the kernels right and how fast are they, on a GPU that is lent for a quarter of an hour?

Command:  python -m experiments.device_visit --part a --budget 255 --out DIR
          python -m experiments.device_visit --part b --budget 315 --out DIR --semantics Warpgroup
Machine:  one GPU (parts a and b), a TPU (a); `--dry` rehearses on a CPU with interpreted kernels

Not run on a device yet: none was at hand.

Part a: the machine, its ceilings, every attention kernel against XLA in float32 (results,
gradients, 20 repeats bit for bit), and seconds beside other implementations. Part b: block sizes,
decoding, a train step of 1B, decoding and prefill of 1B and 8B.

This process opens no device. One worker does the cases in turn and writes a line before and after
each, so a case that hangs or takes the process with it costs itself and a start of the next worker,
and whatever ends the visit leaves what was found until then. Files in DIR: results.jsonl,
worker.log, summary.md.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
START = 60.0  # seconds until a worker has opened the device and said its first word
STARTS = 2  # that may fail in a row
POLL = 0.1  # seconds between looks at what the worker wrote
LETTERS = 12_000  # of the summary: more than that may not come back from a machine


def main() -> None:
    """Visits, prints the summary and writes it."""
    parser = argparse.ArgumentParser(prog="python -m experiments.device_visit")
    parser.add_argument("--part", choices=["a", "b"], required=True)
    parser.add_argument("--budget", type=float, default=255, help="seconds in all")
    parser.add_argument("--out", type=Path, required=True, help="a folder for what is found")
    parser.add_argument("--semantics", choices=["Lane", "Warpgroup"], help="of Mosaic GPU")
    parser.add_argument("--dry", action="store_true", help="rehearse: small, interpreted, on a CPU")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    words = ["--part", args.part, "--out", str(args.out)]
    words += ["--semantics", args.semantics] if args.semantics else []
    words += ["--dry"] if args.dry else []
    text = summary(Visit(words, args.out, args.budget).run())
    (args.out / "summary.md").write_text(text + "\n")
    print(text[:LETTERS], flush=True)


@dataclass
class Visit:
    """One visit.

    Attributes:
      words: arguments of a worker.
      out: the folder of its files.
      budget: seconds until all is ended.
      worker: module that does the cases; a test has one of its own.
      start: seconds until a worker has said its first word.
      case: what is at work, or None.
      done: names of cases that need no other try.
    """

    words: list[str]
    out: Path
    budget: float
    worker: str = "experiments.visit.worker"
    start: float = START
    case: dict[str, Any] | None = None
    done: list[str] = field(default_factory=list)

    def run(self) -> list[dict[str, Any]]:
        """Every event of the visit, in order."""
        results = self.out / "results.jsonl"
        results.touch()
        end, failed = time.monotonic() + self.budget, 0
        with results.open() as lines, (self.out / "worker.log").open("ab") as log:
            lines.seek(0, os.SEEK_END)
            events: list[dict[str, Any]] = []
            while failed < STARTS and time.monotonic() < end:
                before = len(self.done)
                skip = [word for name in self.done for word in ("--skip", name)]
                process = subprocess.Popen(
                    [sys.executable, "-m", self.worker, *self.words, *skip],
                    stdout=log, stderr=log, cwd=ROOT, env=os.environ | ENVIRONMENT,
                )  # fmt: skip
                reason = self._watch(process, lines, events, end)
                if reason is None:
                    break
                culprit = self.case["case"] if self.case else "start"
                event = {"event": "ended", "case": culprit, "why": reason}
                with results.open("a") as file:
                    file.write(json.dumps(event) + "\n")
                if self.case:
                    self.done.append(culprit)
                self.case = None
                failed = failed + 1 if len(self.done) == before else 0
            events += _read(lines)
        return events

    def _watch(self, process: Any, lines: Any, events: list[Any], end: float) -> str | None:
        """Until the worker has ended or must be ended: why, or None if it did all."""
        since = time.monotonic()
        while True:
            ended = process.poll()
            for event in _read(lines):
                events.append(event)
                since = time.monotonic()
                self.case = event if event["event"] == "begin" else None
                if event["event"] in ("end", "failed"):
                    self.done.append(event["case"])
            now, limit = time.monotonic(), self.case["limit"] if self.case else self.start
            if ended is not None:
                return None if ended == 0 else f"the worker ended with status {ended}"
            if now - since > limit or now > end:
                process.kill()  # a kernel that hangs hears nothing else
                process.wait()
                return "the visit's time is up" if now > end else f"no answer within {limit:g} s"
            time.sleep(POLL)


# For the worker: it shares the GPU with torch, and a second visit finds compiled programs.
ENVIRONMENT = {
    "XLA_PYTHON_CLIENT_PREALLOCATE": "false",
    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    "JAX_TRACEBACK_FILTERING": "off",
    "TF_CPP_MIN_LOG_LEVEL": "1",
    "PYTHONUNBUFFERED": "1",
}


def _read(lines: Any) -> list[dict[str, Any]]:
    """The lines that are whole by now."""
    found = []
    while True:
        at = lines.tell()
        line = lines.readline()
        if not line.endswith("\n"):
            lines.seek(at)
            return found
        found.append(json.loads(line))


def summary(events: list[dict[str, Any]]) -> str:
    """Markdown: a row for each case that ended, then the errors in full."""
    rows, errors = ["| case | s | found |", "|---|---|---|"], []
    for event in events:
        name, seconds = event["case"], event.get("seconds", "")
        if event["event"] == "end":
            figures = ", ".join(f"{key} {value}" for key, value in event["figures"].items())
            rows.append(f"| {name} | {seconds} | {figures} |")
        elif event["event"] in ("failed", "ended"):
            why = event["why"]
            rows.append(f"| {name} | {seconds} | **{why.strip().splitlines()[-1][:150]}** |")
            errors.append(f"{name}:\n{why}")
    return "\n".join(rows + ([""] + errors if errors else []))


if __name__ == "__main__":
    main()
