"""The command `llama-jax presets`."""

import argparse

from llama_jax.cli.options import Add


def add(command: Add) -> None:
    """Adds the command to the command line."""
    command("presets", _presets, "list the presets")


def _presets(args: argparse.Namespace) -> None:
    from llama_jax import presets

    width = max(map(len, presets.NAMES), default=0)
    for name in presets.NAMES:
        print(f"{name:{width}}  {presets.describe(name)}")
