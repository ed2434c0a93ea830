"""`llama-jax rehearse`: the command of a pod, run here by a few processes with simulated devices.

Each process runs the very command; `on_stage` then puts this machine's coordinator, a scratch run
directory and a few steps in the place of what the command says. The same steps on one process with
as many devices must give the same losses.
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

from llama_jax.errors import UserError
from llama_jax.train.local import Ended, crew

VARIABLE = "LLAMA_JAX_REHEARSAL"
# Sums over devices come in another order; in float32 losses of a few steps differ by some 1e-6.
TOLERANCE = 1e-5
# A dead process is noticed at once here, and there is no network to be slow.
HEARTBEAT, JOIN = 10, 60


@dataclass(frozen=True)
class Part:
    """What a process of a rehearsal does otherwise than its command says.

    Attributes:
      coordinator: on this machine; empty if the process is alone.
      processes: how many there are.
      process: which this is.
      run_dir: a scratch one.
      steps: so few.
      settings: "path=value" as of `--set`.
    """

    coordinator: str
    processes: int
    process: int
    run_dir: str
    steps: int
    settings: list[str] = field(default_factory=list)


def on_stage(args: Any) -> None:
    """Puts the part that the environment gives into the arguments of `llama-jax train`."""
    part = Part(**json.loads(os.environ[VARIABLE]))
    args.distributed = bool(part.coordinator)
    args.coordinator = part.coordinator or None
    args.processes = part.processes if part.coordinator else None
    args.process_id = part.process if part.coordinator else None
    args.join_timeout = JOIN if part.coordinator else None
    args.run_dir, args.steps = Path(part.run_dir), part.steps
    args.wandb = args.profile = None
    args.set = [*args.set, *part.settings]


def rehearse(
    command: str, processes: int, devices: int, steps: int, timeout: float, settings: Sequence[str]
) -> int:
    """Runs the command both ways and prints a table; returns 0 if they agree, else 1.

    Args:
      command: a shell script's path, or the words of a train command.
      processes: to divide the run over.
      devices: simulated ones of each.
      steps: of the rehearsal.
      timeout: seconds for each of the two runs.
      settings: "path=value", for what does not fit on this machine.

    Raises:
      UserError: there is nothing to run.
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
            if any(one.status != 0 for one in ended):
                return _failed(name, ended, timeout)
            found.append((name, losses(place / "run")))
        return _compared(found, steps)


def _words(command: str) -> list[str]:
    """How to run it; our own command by this interpreter, whatever is on the path."""
    if Path(command).is_file():
        return ["bash", command]
    words = shlex.split(command)
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
    run_dir = str(place / "run")
    commands = [
        (words, environment(Part(address, processes, i, run_dir, steps, settings), devices))
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


def _compared(found: Sequence[tuple[str, dict[int, float]]], steps: int) -> int:
    (one, alone), (other, divided) = found
    print(f"| step | {one} | {other} | difference |\n|---|---|---|---|")
    good = set(alone) == set(divided) == set(range(1, steps + 1))
    for step in sorted(alone.keys() | divided.keys()):
        a, b = alone.get(step, math.nan), divided.get(step, math.nan)
        # NaN compares false, so a loss that is not finite or not there fails.
        good = good and abs(a - b) <= TOLERANCE * max(1, abs(a))
        print(f"| {step} | {a:.7f} | {b:.7f} | {abs(a - b):.1e} |")
    if not alone or not divided:
        print(f"no losses were written; does the command run llama-jax train with {VARIABLE}?")
    print("passed" if good else f"failed: losses are not within {TOLERANCE:g} of each other")
    return 0 if good else 1
