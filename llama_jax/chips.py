"""What a chip can do: peaks from its maker, and what of them is reached, in one place.

Sources. TPU: Google Cloud's "System architecture" page of each generation for FLOP/s and HBM; the
links' rates a direction and the networks between slices from "How to Scale Your Model"
(jax-ml.github.io/scaling-book, chapters 2 and 12), which gives measured rates. GPU: NVIDIA's data
sheets; what all-gathers reach inside a node is the 370 of 450 GB/s of chapter 12.
"""

import re
from dataclasses import dataclass

GIB = 2**30

# bfloat16 products, dense (no sparsity), FLOP/s a chip as jax.devices() counts them. TPUs: Google
# Cloud's "System architecture" page of each generation. GPUs: NVIDIA's data sheets of A100, H100,
# H200 and B200; "with sparsity" figures halved. The first pattern that matches a device's kind
# counts, so what is special comes before what is general.
PEAKS: tuple[tuple[str, float], ...] = (
    (r"TPU v4", 275e12),
    (r"TPU v5 ?lite|TPU v5e", 197e12),
    (r"TPU v5", 459e12),  # v5p calls itself "TPU v5"
    (r"TPU v6", 918e12),
    (r"A100", 312e12),
    (r"H100 PCIe", 756e12),
    (r"H100 NVL", 835e12),
    (r"H100|H200", 989e12),
    (r"B200", 2250e12),
)


def peak(kind: str) -> float | None:
    """FLOP/s of a chip by its `device_kind`, e.g. "TPU v5 lite"; None if it is not in the table."""
    return next((flops for pattern, flops in PEAKS if re.search(pattern, kind)), None)


@dataclass(frozen=True)
class Chip:
    """One device as jax counts them; rates are a second.

    Attributes:
      name: as in a topology, "v6e".
      kind: what jax calls it, `device_kind`.
      hbm: bytes that a program may use.
      bandwidth: bytes read or written in HBM.
      link: bytes one way over one link to a neighbour; of a GPU, over NVLink to its node.
      dcn: bytes one way between slices, of a GPU between nodes (its own adapter).
      efficiency: share of the peak that matrix products reach inside a train step, all that is
        not a product or a network included; the one constant of a family, chosen beside published
        figures (`experiments/plan_published.py` has the errors that it leaves).
      tile: rows and columns of its matrix unit, which smaller products leave idle; 1 of a GPU.
      wraps: a torus axis of so many chips, or a multiple, is closed to a ring; 0: no torus.
      local: chips of one host.
    """

    name: str
    kind: str
    hbm: float
    bandwidth: float
    link: float
    dcn: float
    efficiency: float
    tile: int
    wraps: int
    local: int

    @property
    def flops(self) -> float:
        """Peak of bfloat16 products."""
        found = peak(self.kind)
        assert found is not None, self.kind
        return found

    def filled(self, head_dim: int) -> float:
        """The share of its matrix unit that attention fills: both its products have a side H."""
        return min(head_dim / self.tile, 1.0)

    @property
    def gpu(self) -> bool:
        """Whether it is one."""
        return self.wraps == 0


# Share of the time of collectives of weights (gathers and sums of gradients over data and fsdp)
# that runs beside products: XLA prefetches a layer's weights while the layer before computes, but
# not the first of a pass. Sums over tensor wait for a product and hold up the next: none hidden.
OVERLAP = 0.9

CHIPS: dict[str, Chip] = {
    # The compilers leave 15.75, 31.25 and 95.74 GiB to a program.
    "v5e": Chip("v5e", "TPU v5 lite", 15.75 * GIB, 819e9, 45e9, 6.25e9, 0.74, 128, 16, 4),
    "v5p": Chip("v5p", "TPU v5", 95.74 * GIB, 2765e9, 90e9, 6.25e9, 0.74, 128, 4, 4),
    "v6e": Chip("v6e", "TPU v6 lite", 31.25 * GIB, 1640e9, 90e9, 12.5e9, 0.56, 256, 16, 4),
    # 92 % of the memory, as XLA_PYTHON_CLIENT_MEM_FRACTION in the launch line says.
    "h100": Chip(
        "h100", "NVIDIA H100 80GB HBM3", 0.92 * 84978434048, 3352e9, 370e9, 50e9, 0.45, 1, 0, 8
    ),
    "a100": Chip(
        "a100", "NVIDIA A100-SXM4-80GB", 0.92 * 85174714368, 2039e9, 240e9, 25e9, 0.50, 1, 0, 8
    ),
}
