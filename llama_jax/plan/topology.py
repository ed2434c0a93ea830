"""Topologies by name: "v6e:16x16", "v5p:8x8x8", "h100:8", "h100:32x8", "v6e:16x16:4" (4 slices).

A chip of TPU7x is two devices to jax, and what is planned is of a device. Chips of v4 are planned
whole, as jax sees them; what libtpu makes of their plain name is halves.
"""

import importlib.util
import math
import re
from dataclasses import dataclass
from importlib import metadata
from typing import Any

from llama_jax.chips import CHIPS, Chip
from llama_jax.errors import UserError, nearest
from llama_jax.plan.environment import AOT, quiet
from llama_jax.plan.gpus import GPUS

# Slices that Google Cloud rents; libtpu knows more, these are the ones to name.
KNOWN: dict[str, tuple[str, ...]] = {
    "v5e": ("1x1", "2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16"),
    "v6e": ("1x1", "2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16"),
    "v5p": (
        *("2x2x1", "2x2x2", "2x2x4", "2x4x4", "4x4x4", "4x4x8", "4x8x8", "8x8x8", "8x8x16"),
        *("8x16x16", "16x16x16", "16x16x24"),
    ),
    "v4": ("2x2x1", "2x2x2", "2x2x4", "2x4x4", "4x4x4", "4x4x8", "4x8x8", "8x8x8", "8x8x16"),
    "tpu7x": ("2x2x1", "2x2x2", "2x2x4", "2x4x4", "4x4x4", "4x4x8", "4x8x8", "8x8x8", "8x8x16"),
    "a100": ("8", "2x8"),
    "h100": ("8", "2x8", "32x8"),
    "h200": ("8", "2x8", "32x8"),
    "b200": ("8", "2x8", "32x8"),
    "gb200": ("8", "72", "4x72"),
}

# Chips along each axis of a whole pod: the compiler ends the process when it is asked for more.
PODS: dict[str, tuple[int, ...]] = {
    "v4": (16, 16, 16),
    "v5e": (16, 16),
    "v6e": (16, 16),
    "v5p": (16, 20, 28),
    "tpu7x": (16, 24, 24),
}


# The first libtpu that compiles for a chip, and the jax that it comes with: that of jax 0.10 knows
# a TPU7x's devices, and ends the process when it is to compile for one.
LEAST = {"tpu7x": ("0.0.48", "0.11")}


@dataclass(frozen=True)
class Topology:
    """Chips and how they are wired.

    Attributes:
      chip: the one kind of chip.
      shape: chips along the sides of the torus, (16, 16); for GPUs, domains of NVLink (nodes, or
        racks of GB200) and GPUs of one, (32, 8).
      slices: such tori, joined by the data-centre network.
    """

    chip: Chip
    shape: tuple[int, ...]
    slices: int = 1

    def __str__(self) -> str:
        shape = self.shape[1:] if self.chip.gpu and self.shape[0] == 1 else self.shape
        more = f":{self.slices}" if self.slices > 1 else ""
        return f"{self.chip.name}:{'x'.join(map(str, shape))}{more}"

    @property
    def chips(self) -> int:
        """All of them."""
        return math.prod(self.shape) * self.slices

    @property
    def size(self) -> int:
        """Devices as jax counts them, those of a mesh."""
        return self.chips * self.chip.devices

    @property
    def unit(self) -> str:
        """What a plan's figures are of."""
        return "chip" if self.chip.devices == 1 else "device"

    @property
    def hosts(self) -> int:
        """Machines, each of which runs a process."""
        if self.chip.gpu:
            return self.shape[0] * -(-self.shape[1] // self.chip.host.chips)
        return max(self.chips // self.chip.host.chips, 1)

    @property
    def islands(self) -> int:
        """Slices, or nodes of GPUs: one axis of a mesh alone crosses them (`axes.make_mesh`)."""
        return self.shape[0] if self.chip.gpu else self.slices

    @property
    def rings(self) -> tuple[bool, ...]:
        """Which of the three axes of a TPU's torus are closed to a ring."""
        closed = [size % self.chip.wraps == 0 for size in self.shape]
        if len(closed) == 3:  # optical switches join whole cubes
            closed = [all(closed)] * 3
        return (*closed, *[False] * (3 - len(closed)))

    def devices(self) -> list[Any]:
        """jax's devices of it, to compile for.

        Raises:
          UserError: the compiler is not installed, or does not know the topology.
        """
        from jax.experimental import topologies

        package = "jax_plugins.xla_cuda13" if self.chip.gpu else "libtpu"
        if not _installed(package):
            raise UserError(f"compiling for {self} needs {package.split('.')[-1]}; try: {AOT}")
        if self.chip.name in LEAST:
            (libtpu, jax), found = LEAST[self.chip.name], metadata.version("libtpu")
            if _numbers(found) < _numbers(libtpu):
                raise UserError(
                    f"compiling for {self} needs libtpu {libtpu} or later, and {found} is "
                    f"installed; try jax {jax} or later with its libtpu (Python >= 3.12): "
                    "pip install 'jax[tpu]'"
                )
        try:
            with quiet():
                if self.chip.gpu:
                    text = "x".join(map(str, (1, *self.shape)))
                    found = topologies.get_topology_desc(
                        platform="cuda", target_config=GPUS[self.chip.name].text(), topology=text
                    )
                else:
                    # Without it libtpu compiles for a mesh of lines, where it makes small gathers
                    # sums over all chips, of twice the bytes.
                    more: dict[str, Any] = {"wrap": self.rings}
                    if self.slices > 1:
                        more["num_slices"] = self.slices
                    if self.shape == (1, 1):
                        more["chips_per_host_bounds"] = (1, 1, 1)
                    if self.chip.name == "v4":
                        more["chip_config_name"] = "megacore"
                    name = f"{self.chip.name}:{'x'.join(map(str, self.shape))}"
                    found = topologies.get_topology_desc(platform="tpu", topology_name=name, **more)
        except Exception as error:  # jax's own error class depends on the plugin
            reason = str(error).strip().partition("\n")[0][:200]
            raise UserError(
                f"the compiler does not know topology {self} ({reason}); there are "
                f"{', '.join(f'{self.chip.name}:{shape}' for shape in KNOWN[self.chip.name])}"
            ) from None
        return found.devices


def _numbers(version: str) -> list[int]:
    """What a version counts: "0.0.48.1" is [0, 0, 48, 1]; letters and what follows do not count."""
    return [int(n) for n in re.match(r"[\d.]*", version)[0].split(".") if n]  # pyright: ignore


def _installed(package: str) -> bool:
    try:
        return importlib.util.find_spec(package) is not None
    except ModuleNotFoundError:
        return False


def parse(text: str) -> Topology:
    """A topology from its name.

    Raises:
      UserError: a name of another form, or a chip that is not in the table.
    """
    found = re.fullmatch(r"([\w-]+):(\d+(?:x\d+)*)(?::(\d+))?", text.strip().lower())
    every = [f"{chip}:{shape}" for chip, shapes in KNOWN.items() for shape in shapes]
    if found is None:
        raise UserError(
            f"topology {text!r}: write CHIP:SHAPE, e.g. v6e:16x16, v5p:8x8x8, h100:32x8, or "
            f"CHIP:SHAPE:SLICES{nearest(text, every)}"
        )
    name, shape = found[1], tuple(int(n) for n in found[2].split("x"))
    if name not in CHIPS:
        raise UserError(
            f"no chip {name!r} in topology {text!r}; there are {', '.join(CHIPS)}"
            + nearest(name, CHIPS)
        )
    chip, slices = CHIPS[name], int(found[3] or 1)
    if chip.gpu:
        shape = (1, *shape) if len(shape) == 1 else shape
        wrong = len(shape) != 2 or shape[1] > chip.domain or slices > 1
        expected = f"GPUs, or nodes x GPUs with at most {chip.domain} a node"
    else:
        wrong = len(shape) != chip.sides
        expected = "three sizes" if chip.sides == 3 else "two sizes"
    if wrong or not all(shape) or not slices:
        raise UserError(
            f"topology {text!r}: expected {expected}, such as "
            f"{', '.join(f'{name}:{known}' for known in KNOWN[name])}{nearest(text, every)}"
        )
    if name in PODS and any(n > most for n, most in zip(sorted(shape), PODS[name], strict=True)):
        pod = "x".join(map(str, PODS[name]))
        raise UserError(
            f"topology {text!r}: a pod of {name} is {pod} chips; more of them are several slices, "
            f"e.g. {name}:{KNOWN[name][-1]}:2"
        )
    return Topology(chip, shape, slices)
