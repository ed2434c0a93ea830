"""GPUs that are not there, as XLA's compiler asks for them: a description in place of a device.

Figures are those that XLA publishes of its test machines (`xla/backends/gpu/target_config/specs` of
github.com/openxla/xla), of SXM modules.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Gpu:
    """What the compiler is told of one device.

    Attributes:
      name: what the device calls itself.
      major: compute capability, its first number.
      cores: multiprocessors.
      shared: bytes of shared memory a core; `optin` is what one block may ask for.
      optin: see `shared`.
      memory: bytes.
      bandwidth: bytes a second.
      l2: bytes of the cache that all cores share.
      ghz: clock.
      fpus: float32 units a core.
    """

    name: str
    major: int
    cores: int
    shared: int
    optin: int
    memory: int
    bandwidth: int
    l2: int
    ghz: float
    fpus: int = 128

    def text(self) -> str:
        """The protocol buffer GpuTargetConfigProto, as text."""
        return f"""
gpu_device_info {{
  threads_per_block_limit: 1024 threads_per_warp: 32 shared_memory_per_block: 49152
  shared_memory_per_core: {self.shared} threads_per_core_limit: 2048 core_count: {self.cores}
  fpus_per_core: {self.fpus} block_dim_limit_x: 2147483647 block_dim_limit_y: 65535
  block_dim_limit_z: 65535 memory_bandwidth: {self.bandwidth} l2_cache_size: {self.l2}
  clock_rate_ghz: {self.ghz} device_memory_size: {self.memory}
  shared_memory_per_block_optin: {self.optin} cuda_compute_capability {{ major: {self.major} }}
  registers_per_core_limit: 65536 registers_per_block_limit: 65536
}}
platform_name: "CUDA"
dnn_version_info {{ major: 9 minor: 8 }}
device_description_str: "{self.name}"
"""


# By the name of a chip in a topology. Ampere has less shared memory than what came after.
GPUS: dict[str, Gpu] = {
    "a100": Gpu(
        "NVIDIA A100-SXM4-80GB",
        *(8, 108, 167_936, 166_912, 85_174_714_368, 2_039 * 10**9, 41_943_040, 1.41, 64),
    ),
    "h100": Gpu(
        "NVIDIA H100 80GB HBM3",
        *(9, 132, 233_472, 232_448, 84_978_434_048, 3_352_320 * 10**6, 52_428_800, 1.98),
    ),
    "h200": Gpu(
        "NVIDIA H200",
        *(9, 132, 233_472, 232_448, 151_397_597_184, 4_800 * 10**9, 52_428_800, 1.98),
    ),
    "b200": Gpu(
        "NVIDIA B200",
        *(10, 148, 233_472, 232_448, 191_514_411_008, 7_672_320 * 10**6, 132_644_864, 1.965),
    ),
    "gb200": Gpu(
        "NVIDIA GB200",
        *(10, 152, 233_472, 232_448, 197_897_748_480, 7_928_064 * 10**6, 135_528_448, 2.062),
    ),
}
