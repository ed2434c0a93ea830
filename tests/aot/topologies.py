"""Devices that are not there: compile for a TPU pod slice or for H100s on any machine.

    devices = tpu("v5e:2x2")
    mesh = make_mesh(fsdp=4, devices=devices)
    compiled = jax.jit(step).lower(*shapes_with_shardings).compile()
    print(memory(compiled))

The compilers are the real ones, from the `aot` extra. What they say about memory per device is
what a device would say; no value can be computed.
"""

import importlib.util
import os
import pathlib
from typing import Any

# The description that XLA's compiler asks for in place of a device: an H100 SXM with 80 GB.
H100 = """
gpu_device_info {
  threads_per_block_limit: 1024 threads_per_warp: 32 shared_memory_per_block: 49152
  shared_memory_per_core: 233472 threads_per_core_limit: 2048 core_count: 132 fpus_per_core: 128
  block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
  memory_bandwidth: 3352320000000 l2_cache_size: 52428800 clock_rate_ghz: 1.98
  device_memory_size: 84978434048 shared_memory_per_block_optin: 232448
  cuda_compute_capability { major: 9 } registers_per_core_limit: 65536
  registers_per_block_limit: 65536
}
platform_name: "CUDA"
dnn_version_info { major: 9 minor: 8 }
device_description_str: "NVIDIA H100 80GB HBM3"
"""

# An A100 SXM with 80 GB: Ampere, with less shared memory and products of one warp.
A100 = """
gpu_device_info {
  threads_per_block_limit: 1024 threads_per_warp: 32 shared_memory_per_block: 49152
  shared_memory_per_core: 167936 threads_per_core_limit: 2048 core_count: 108 fpus_per_core: 64
  block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
  memory_bandwidth: 2039000000000 l2_cache_size: 41943040 clock_rate_ghz: 1.41
  device_memory_size: 85174714368 shared_memory_per_block_optin: 166912
  cuda_compute_capability { major: 8 } registers_per_core_limit: 65536
  registers_per_block_limit: 65536
}
platform_name: "CUDA"
dnn_version_info { major: 9 minor: 8 }
device_description_str: "NVIDIA A100-SXM4-80GB"
"""


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


def set_environment() -> None:
    """Sets what the compilers read from the environment; must run before jax is imported."""
    os.environ["JAX_PLATFORMS"] = "cpu"
    # Without this libtpu asks the cloud's metadata server where it is, for minutes.
    os.environ["TPU_SKIP_MDS_QUERY"] = "1"
    # There is no TPU to lock, and the lock of a process that was killed would stay.
    os.environ["ALLOW_MULTIPLE_LIBTPU_LOAD"] = "1"
    # Autotuning would run candidates on a GPU; without it XLA's Triton products find no tile sizes
    # for some shapes, so products go to cuBLAS.
    flags = ["--xla_gpu_autotune_level=0", "--xla_gpu_enable_triton_gemm=false"]
    flags += [f"--xla_gpu_cuda_data_dir={cuda_dir()}"]
    os.environ["XLA_FLAGS"] = " ".join([os.environ.get("XLA_FLAGS", ""), *flags]).strip()


def cuda_dir() -> pathlib.Path:
    """Finds bin/ptxas and nvvm/libdevice: from package `nvidia-cuda-nvcc` or a toolkit."""
    spec = importlib.util.find_spec("nvidia")
    packages = [pathlib.Path(p) for p in (spec.submodule_search_locations or [])] if spec else []
    candidates = [
        *(folder for package in packages for folder in sorted(package.glob("cu*"), reverse=True)),
        *(pathlib.Path(os.environ[n]) for n in ("CUDA_HOME", "CUDA_PATH") if n in os.environ),
        pathlib.Path("/usr/local/cuda"),
    ]
    for folder in candidates:
        if (folder / "bin" / "ptxas").exists() and (folder / "nvvm" / "libdevice").exists():
            return folder
    raise FileNotFoundError(
        "no CUDA folder with bin/ptxas and nvvm/libdevice in "
        f"{[str(c) for c in candidates]}; `make aot` installs one (package nvidia-cuda-nvcc)"
    )
