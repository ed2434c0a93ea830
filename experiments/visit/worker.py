"""The worker of a visit: does cases in turn, and writes a line before and after each.

`experiments.device_visit` starts it, watches it and ends it if it must. A group's programs are
lowered one after the other, for that is Python, and compiled in threads meanwhile.
"""

import argparse
import contextlib
import faulthandler
import json
import os
import time
import traceback
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import jax

LOWERING = 30  # seconds for the programs of a case, that is Python


class Ready(NamedTuple):
    """A case as far as it goes without the device.

    Attributes:
      programs: lowered, by name.
      run: takes them compiled, gives figures by name; raises `Wrong` if results are.
    """

    programs: dict[str, Any]
    run: Callable[[dict[str, Any]], dict[str, Any]]


@dataclass(frozen=True)
class Case:
    """What a visit asks.

    Attributes:
      name: of its row.
      limit: seconds that it may take, the rest of its compiling included.
      prepare: makes it ready.
    """

    name: str
    limit: float
    prepare: Callable[[], Ready]


class Wrong(Exception):
    """A kernel's results are not those of XLA."""


class Notes:
    """The file of events, each on the disk before what follows it begins."""

    def __init__(self, path: Path):
        """Adds to what is there."""
        self._file = path.open("a")

    def write(self, event: str, case: str, **more: Any) -> None:
        """One line."""
        self._file.write(json.dumps({"event": event, "case": case} | more) + "\n")
        self._file.flush()
        os.fsync(self._file.fileno())

    @contextlib.contextmanager
    def kept(self, case: str) -> Iterator[None]:
        """Whatever the block raises is a line; the cases after it go on."""
        try:
            yield
        except Exception as error:
            wrong = isinstance(error, Wrong)
            self.write("failed", case, why=str(error) if wrong else traceback.format_exc())


def work(groups: list[list[Case]], skip: set[str], notes: Notes) -> None:
    """All cases but those to skip, group by group."""
    with ThreadPoolExecutor(max(2, (os.cpu_count() or 2) - 2)) as pool:
        for group in groups:
            ready: list[tuple[Case, Callable[..., Any], dict[str, Future]]] = []
            for case in group:
                if case.name in skip:
                    continue
                notes.write("begin", case.name, limit=LOWERING)
                with notes.kept(case.name):
                    programs, run = case.prepare()
                    compiling = {name: pool.submit(one.compile) for name, one in programs.items()}
                    ready.append((case, run, compiling))
            for case, run, compiling in ready:
                notes.write("begin", case.name, limit=case.limit)
                start = time.perf_counter()
                with notes.kept(case.name):
                    figures = run({name: one.result() for name, one in compiling.items()})
                    seconds = round(time.perf_counter() - start, 1)
                    notes.write("end", case.name, seconds=seconds, figures=figures)


def main() -> None:
    """Does the cases of a part."""
    parser = argparse.ArgumentParser(prog="python -m experiments.visit.worker")
    parser.add_argument("--part", required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--semantics")
    parser.add_argument("--dry", action="store_true")
    parser.add_argument("--skip", action="append", default=[])
    args = parser.parse_args()
    # What hangs in C++ shows where Python called it before the limit ends the process.
    faulthandler.dump_traceback_later(15, repeat=True)
    cache = args.out.resolve() / "compiled"
    jax.config.update("jax_compilation_cache_dir", str(cache))
    if args.semantics:
        from jax.experimental.pallas import mosaic_gpu as plgpu

        from llama_jax.kernels.attention import mosaic_gpu_parts

        mosaic_gpu_parts.SEMANTICS = plgpu.LoweringSemantics[args.semantics]
    from experiments.visit import cases

    work(cases.groups(args.part, args.dry), set(args.skip), Notes(args.out / "results.jsonl"))


if __name__ == "__main__":
    # Cases import this file by its name: of `Wrong` there must be one.
    from experiments.visit import worker

    worker.main()
