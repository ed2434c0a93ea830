"""Devices that are not there: compile for a TPU pod slice or for H100s on any machine.

    devices = tpu("v5e:2x2")
    mesh = make_mesh(fsdp=4, devices=devices)
    compiled = jax.jit(step).lower(*shapes_with_shardings).compile()
    print(memory(compiled))

The compilers are the real ones, from the `aot` extra. What they say about memory per device is
what a device would say; no value can be computed.
"""

from typing import Any

from llama_jax.plan.environment import cuda_dir, set_environment
from llama_jax.plan.gpus import GPUS

__all__ = ["A100", "H100", "a100", "cuda_dir", "h100", "memory", "set_environment", "tpu"]

A100, H100 = GPUS["a100"].text(), GPUS["h100"].text()


def tpu(name: str) -> list[Any]:
    """Returns the devices of a topology such as "v5e:2x2", "v5p:4x4x4" or "v6e:4x4"."""
    from jax.experimental import topologies

    return topologies.get_topology_desc(platform="tpu", topology_name=name).devices


def h100(count: int, description: str = H100) -> list[Any]:
    """Returns `count` H100s in one host, or GPUs of another description."""
    from jax.experimental import topologies

    # Slices x hosts x GPUs.
    topology = f"1x1x{count}"
    return topologies.get_topology_desc(
        platform="cuda", target_config=description, topology=topology
    ).devices


def a100(count: int) -> list[Any]:
    """Returns `count` A100s in one host."""
    return h100(count, A100)


def memory(compiled: Any) -> str:
    """Says in MiB what one device holds while the program runs."""
    stats = compiled.memory_analysis()
    sizes = {
        "arguments": stats.argument_size_in_bytes,
        "outputs": stats.output_size_in_bytes,
        "shared by both": -stats.alias_size_in_bytes,
        "temporary": stats.temp_size_in_bytes,
    }
    parts = ", ".join(f"{name} {size / 2**20:.2f}" for name, size in sizes.items() if size)
    return f"{sum(sizes.values()) / 2**20:.2f} MiB per device ({parts})"
