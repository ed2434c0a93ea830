"""What a GPU's assembler says of a compiled program: registers, spills, tensor-core instructions.

    for use in kernels(jax.jit(f).lower(*shapes)):
        print(use.name, use.registers, use.spills, use.shared, use.products)

A spill is a register that does not fit and goes through memory on every use: a kernel in whose
inner loop that happens may lose half of its speed, which no test of values notices.
"""

import pathlib
import re
import subprocess
import tempfile
from typing import Any, NamedTuple

from tests.aot.topologies import cuda_dir


class Use(NamedTuple):
    """What one kernel takes of a multiprocessor.

    Attributes:
      name: of the kernel.
      registers: of a thread; 255 is the most there can be.
      spills: bytes of a thread that are stored because no register was free, and those loaded.
      products: the instructions that multiply matrices, e.g. "wgmma" or "mma.sync"; "" if none.
      asynchronous: whether loads go to shared memory past the registers (cp.async).
      shared: bytes of shared memory of a program, 0 if not known; an H100 has 227 KiB for all that
        a multiprocessor runs at a time, an A100 163 KiB.
    """

    name: str
    registers: int
    spills: int
    products: str
    asynchronous: bool
    shared: int = 0


# Hopper's products of a group of warps, Ampere's of a warp.
PRODUCTS = ("wgmma", "mma.sync")


def kernels(lowered: Any, arch: str = "sm_90a") -> list[Use]:
    """Compiles a lowered program and returns what each of its GPU kernels takes."""
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        _overhear(folder / "cuda", folder)
        # The tests' own environment turns optimizations off, for speed; 3 is XLA's default.
        options = {
            "xla_gpu_cuda_data_dir": str(folder / "cuda"),
            "xla_backend_optimization_level": 3,
            "xla_dump_to": name,
        }
        lowered.compile(compiler_options=options)
        texts, thunks = (
            [file.read_text() for file in sorted(folder.glob(glob))]
            for glob in ("heard.*", "*.thunk_sequence.txt")
        )
    # A module of constants alone has no entry.
    found = [use for text in texts if ".entry" in text for use in assembled(text, arch)]
    shared = dict(re.findall(r"(\w+) grid:.*shared_memory: (\d+)", "".join(thunks)))
    return [use._replace(shared=int(shared.get(use.name, 0))) for use in found]


def _overhear(cuda: pathlib.Path, folder: pathlib.Path) -> None:
    """A CUDA folder whose ptxas keeps what it is given: XLA of jax 0.11 dumps no PTX of Triton."""
    (cuda / "bin").mkdir(parents=True)
    (cuda / "nvvm").symlink_to(cuda_dir() / "nvvm")
    ptxas = cuda / "bin" / "ptxas"
    keep = f'[ -f "$1" ] && cp "$1" "$(mktemp {folder}/heard.XXXXXX)"'
    ptxas.write_text(f'#!/bin/sh\n{keep}\nexec {cuda_dir()}/bin/ptxas "$@"\n')
    ptxas.chmod(0o755)


def assembled(ptx: str, arch: str = "sm_90a") -> list[Use]:
    """What each kernel of a PTX text takes."""
    with tempfile.TemporaryDirectory() as folder:
        source = pathlib.Path(folder) / "kernel.ptx"
        source.write_text(ptx)
        command = [cuda_dir() / "bin" / "ptxas", "-v", f"-arch={arch}", source]
        done = subprocess.run(
            [*command, "-o", source.with_suffix(".cubin")],
            capture_output=True,
            text=True,
            check=False,
        )
    if done.returncode:
        raise ValueError(f"ptxas refused the program: {done.stderr}")
    bodies = dict(re.findall(r"\.entry (\w+)\((.*?)(?=\.entry |\Z)", ptx, re.S))
    found = []
    for name, report in re.findall(
        r"Compiling entry function '(\w+)'(.*?)(?=Compiling entry function|\Z)", done.stderr, re.S
    ):
        spilled = re.findall(r"(\d+) bytes spill", report)
        registers = re.search(r"Used (\d+) registers", report)
        assert registers is not None, report
        products = [p for p in PRODUCTS if p in bodies[name]]
        found.append(
            Use(
                name,
                int(registers[1]),
                sum(map(int, spilled)),
                ", ".join(products),
                "cp.async" in bodies[name],
            )
        )
    return found
