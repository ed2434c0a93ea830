"""What a run's step will take of the devices that are here, and what is done if it is too much.

By shapes, before anything is allocated: weights, moments and gradients are exact, and activations
are what the forward pass leaves for the backward one, and what a layer makes of it again.
"""

import dataclasses
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import jax

from llama_jax.chips import GIB
from llama_jax.config import Run
from llama_jax.errors import UserError
from llama_jax.plan.policies import with_policy
from llama_jax.plan.program import Step, held, stacks, total_rows

MIB = 2**20
ROOM = 1.1  # for what shapes do not tell: the program, gathered weights, scraps


@dataclass(frozen=True)
class Need:
    """Bytes of one device in a step.

    Attributes:
      parts: by what they are for.
    """

    parts: dict[str, float]

    @property
    def total(self) -> float:
        """All of them, with room for the rest."""
        return ROOM * sum(self.parts.values())

    def __str__(self) -> str:
        each = ", ".join(f"{name} {_size(part)}" for name, part in self.parts.items())
        return f"{_size(self.total)} ({each})"


def need(run: Run, devices: Sequence[Any]) -> Need:
    """What a step of a run takes of each of the devices.

    Raises:
      UserError: a mesh that does not fit the devices, the weights or the batch.
    """
    step = Step.of(run, list(devices))
    state = step.layout.abstract
    params, kept = held(state.params), held((state.opt_state, state.ema))
    sums = 1 + (run.accumulate > 1)  # of micro-batches, and those of the one at hand
    left = _left(run, step) / run.accumulate / len(devices)
    parts = {"weights": params, "optimizer": kept, "gradients": sums * params, "activations": left}
    return Need(parts)


def _left(run: Run, step: Step) -> float:
    """Bytes of activations at the most, of all devices together."""
    left, every = step.residuals(), stacks(run.model)
    if all(stack.remat == "none" for stack in every.values()):
        return left
    whole = dataclasses.replace(step, run=with_policy(run, every, "none")).residuals()
    layers = sum(len(stack.pattern) * stack.repeats for stack in every.values())
    return left + max(whole - left, 0) / max(layers, 1)


def room(device: Any) -> int | None:
    """Bytes that a device has left for a run; of a CPU, the memory that the machine has free."""
    stats = device.memory_stats() or {}
    if "bytes_limit" in stats:
        return stats["bytes_limit"] - stats.get("bytes_in_use", 0)
    if device.platform != "cpu":
        return None
    try:
        with open("/proc/meminfo", encoding="ascii") as file:
            known = dict(line.split(":", 1) for line in file)
        return int(known["MemAvailable"].split()[0]) * 1024
    except (OSError, KeyError, ValueError):
        try:
            return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        except (OSError, ValueError):
            return None


def fitted(run: Run, say: Callable[[str], None], there: int | None = None) -> Run:
    """The run so that its step fits the devices that are here, which changes none of its losses.

    If it does not as it is, blocks are computed again in the backward pass, then the batch is split
    into micro-batches.

    Args:
      run: the run.
      say: told what a step takes, and what was changed.
      there: bytes that each device has; looked up for None.

    Raises:
      UserError: it cannot be made to fit; says by how much, and what helps.
    """
    devices = jax.devices()
    alike = len({device.platform for device in devices}) == 1
    if there is None:
        there = room(devices[0])
        if there is not None and alike and devices[0].platform == "cpu":
            there //= len(devices)  # they share the machine's
    for change, tried in _ways(run, len(devices)):
        found = need(tried, devices)
        if there is None or found.total <= there:
            say(f"a step takes {found} of {_size(there)} a device{change}")
            return tried
    raise UserError(
        f"a step of {run.name} takes {found} of each device, which has {_size(there)}, with "
        f"{_said(tried)}; try --param-dtype bfloat16, --optimizer adafactor, a smaller model, or "
        "more devices with --mesh fsdp"
    )


def _ways(run: Run, devices: int) -> Iterator[tuple[str, Run]]:
    """Yields the run as it is, then with less memory, and what to say of the change."""
    yield "", run
    if all(stack.remat == "none" for stack in stacks(run.model).values()):
        run = with_policy(run, stacks(run.model), "block")
        yield "; blocks are computed again in the backward pass (remat=block)", run
    rows = total_rows(run)
    for micro in range(2 * run.accumulate, rows // devices + 1):
        if rows % (micro * devices) == 0:
            run = dataclasses.replace(run, accumulate=micro)
            yield f"; {_said(run)}", run


def _said(run: Run) -> str:
    return f"remat=block and the batch in {run.accumulate} micro-batch(es)"


def _size(count: float | None) -> str:
    if count is None:
        return "an unknown size"
    return f"{count / GIB:.1f} GiB" if count >= GIB else f"{count / MIB:.1f} MiB"
