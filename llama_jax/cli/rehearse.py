"""`llama-jax rehearse`: the command of a pod, run here by a few processes with simulated devices.

Each process runs the very command; `on_stage` then puts this machine's coordinator, a scratch run
directory and a few steps in the place of what each `llama-jax train` of it says. The same steps on
one process with as many devices must give the same losses.
"""

import json
import math
import os
import shlex
import socket
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from llama_jax.cli.subprocesses import Ended, crew
from llama_jax.errors import UserError

VARIABLE = "LLAMA_JAX_REHEARSAL"
# Sums over devices come in another order; in float32 losses of a few steps differ by some 1e-6.
TOLERANCE = 1e-5
# A dead process is noticed at once here, and there is no network to be slow.
HEARTBEAT, JOIN = 10, 60
REFUSAL = "llama-jax: "  # how `main` begins the line of a UserError


@dataclass(frozen=True)
class Part:
    """What a process of a rehearsal does otherwise than its command says.

    Attributes:
      coordinator: on this machine; empty if the process is alone.
      processes: how many there are.
      process: which this is.
      folder: a scratch one, in which every run directory that the command names has its own.
      steps: so few.
      settings: "path=value" as of `--set`.
    """

    coordinator: str
    processes: int
    process: int
    folder: str
    steps: int
    settings: list[str] = field(default_factory=list)

    def places(self) -> dict[str, Path]:
        """The run directories that this process was told of so far, and where they are.

        They go by their number: a name may have the time in it, and differ from process to process.
        """
        path = self._listing()
        named = json.loads(path.read_text()) if path.exists() else []
        return {name: Path(self.folder, f"run-{i}") for i, name in enumerate(named)}

    def place(self, run_dir: Path) -> Path:
        """Where a run directory of the command is."""
        name, known = str(run_dir.absolute()), self.places()
        if name not in known:
            self._listing().write_text(json.dumps([*known, name]))
        return self.places()[name]

    def moved(self, text: str) -> str:
        """An option or setting, with the place of the run directory that it names."""
        start, equals, value = text.rpartition("=")
        place = self.places().get(str(Path(value).absolute()))
        return text if place is None else f"{start}{equals}{place}"

    def _listing(self) -> Path:
        return Path(self.folder, f"run-dirs-{self.process}.json")


def on_stage(args: Any) -> None:
    """Puts the part that the environment gives into the arguments of `llama-jax train`."""
    part = Part(**json.loads(os.environ[VARIABLE]))
    args.distributed = bool(part.coordinator)
    args.coordinator = part.coordinator or None
    args.processes = part.processes if part.coordinator else None
    args.process_id = part.process if part.coordinator else None
    args.join_timeout = JOIN if part.coordinator else None
    args.run_dir, args.steps = part.place(args.run_dir), part.steps
    args.wandb = args.profile = None
    # A run may begin with the weights of one before it.
    args.overrides = [part.moved(text) for text in args.overrides]
    args.set = [*map(part.moved, args.set), *part.settings]


def rehearse(
    command: str, processes: int, devices: int, steps: int, timeout: float, settings: Sequence[str]
) -> int:
    """Runs the command both ways and prints the losses; returns 0 if they agree, else 1.

    Args:
      command: a shell script's path, or the words of a train command.
      processes: to divide the run over.
      devices: simulated ones of each.
      steps: how many steps to rehearse.
      timeout: seconds for each of the two runs.
      settings: "path=value", for what does not fit on this machine.

    Raises:
      UserError: there is nothing to run, it does not run undivided either, or it trains nothing.
    """
    if min(processes, devices, steps) < 1 or processes < 2:
        raise UserError(
            f"{processes} processes x {devices} devices, {steps} steps: expected at least 2 x 1 "
            "and 1 step"
        )
    words = _words(command)
    forced = [*settings, "log_every=1", f"save_every={steps}", "dtype=float32", "evaluations={}"]
    with tempfile.TemporaryDirectory(prefix="rehearsal-") as folder:
        found = []
        for count in (1, processes):
            place = Path(folder, str(count))
            place.mkdir()
            ended = _run(words, count, devices * processes // count, steps, place, timeout, forced)
            name = f"{count} process{'es' * (count > 1)} x {devices * processes // count} devices"
            if count == 1:
                _check_mistake(ended)
            if any(one.status != 0 for one in ended):
                return _failed(name, ended, timeout)
            runs = Part("", count, 0, str(place), steps).places()
            if count == 1 and not any(map(losses, runs.values())):
                raise UserError(
                    f"{command!r} ended well and trained nothing; expected a llama-jax train in "
                    f"it, which reads {VARIABLE}"
                )
            found.append((name, {run_dir: losses(run) for run_dir, run in runs.items()}))
        return _compared(found, steps)


def _check_mistake(ended: Sequence[Ended]) -> None:
    """Raises the one line by which a command of ours refused to run."""
    for one in ended:
        said = [line for line in one.said.splitlines() if line.startswith(REFUSAL)]
        if one.status == 2 and said:
            raise UserError(said[-1].removeprefix(REFUSAL))


def _words(command: str) -> list[str]:
    """How to run it; our own command by this interpreter, whatever is on the path."""
    if Path(command).is_file():
        return ["bash", command]
    try:
        words = shlex.split(command)
    except ValueError:  # a quote that does not end
        words = []
    words = words[1:] if words[:1] == ["llama-jax"] else words
    if words[:1] != ["train"]:
        raise UserError(
            f"{command!r} is neither a file nor a train command; try: llama-jax rehearse pod.sh, "
            "or llama-jax rehearse -- train PRESET --run-dir DIR"
        )
    return [sys.executable, "-m", "llama_jax", *words]


def _run(
    words: list[str],
    processes: int,
    devices: int,
    steps: int,
    place: Path,
    timeout: float,
    settings: list[str],
) -> list[Ended]:
    address = f"127.0.0.1:{_free_port()}" if processes > 1 else ""
    commands = [
        (words, environment(Part(address, processes, i, str(place), steps, settings), devices))
        for i in range(processes)
    ]
    with crew(commands, place) as running:
        return running.wait(timeout)


def environment(part: Part, devices: int) -> dict[str, str]:
    """The environment of a process with so many simulated devices."""
    kept = [f for f in os.environ.get("XLA_FLAGS", "").split() if "device_count" not in f]
    paths = [str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH", "")]
    return os.environ | {
        VARIABLE: json.dumps(asdict(part)),
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": " ".join([*kept, f"--xla_force_host_platform_device_count={devices}"]),
        "LLAMA_JAX_HEARTBEAT_TIMEOUT": str(HEARTBEAT),
        # A script's `llama-jax` and `python` are this one.
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")]),
        "PYTHONPATH": os.pathsep.join(filter(None, paths)),
    }


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def losses(run_dir: Path) -> dict[int, float]:
    """Step -> loss, of the lines in a run directory; NaN for one that was not finite."""
    path = run_dir / "metrics.jsonl"
    lines = map(json.loads, path.read_text().splitlines()) if path.exists() else ()
    return {
        line["step"]: math.nan if line["loss"] is None else line["loss"]
        for line in lines
        if "loss" in line
    }


def _failed(name: str, ended: Sequence[Ended], timeout: float) -> int:
    for index, one in enumerate(ended):
        how = f"status {one.status}" if one.status is not None else f"ended after {timeout:.0f} s"
        print(f"--- process {index} of {len(ended)}: {how}\n{one.said}")
    print(f"failed: {name}")
    return 1


def _compared(found: Sequence[tuple[str, dict[str, dict[int, float]]]], steps: int) -> int:
    """Prints a table for each run directory; those of both runs are paired in their order."""
    (one, alone), (other, divided) = found
    good = len(alone) == len(divided)
    if not good:
        print(f"{one}: {len(alone)} run directories; {other}: {len(divided)}")
    for (run_dir, left), right in zip(alone.items(), divided.values(), strict=False):
        if len(alone) > 1:
            print(f"\n{run_dir}\n")
        print(f"| step | {one} | {other} | difference |\n|---|---|---|---|")
        good = good and set(left) == set(right) == set(range(1, steps + 1))
        for step in sorted(left.keys() | right.keys()):
            a, b = left.get(step, math.nan), right.get(step, math.nan)
            # NaN compares false, so a loss that is not finite or not there fails.
            good = good and abs(a - b) <= TOLERANCE * max(1, abs(a))
            print(f"| {step} | {a:.7f} | {b:.7f} | {abs(a - b):.1e} |")
    print("passed" if good else f"failed: losses are not within {TOLERANCE:g} of each other")
    return 0 if good else 1
