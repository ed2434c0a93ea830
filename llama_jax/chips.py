"""What a chip can do: peaks from its maker, and what of them is reached, in one place.

Sources. TPU: Google Cloud's "System architecture" page of each generation for FLOP/s and HBM; the
links' rates a direction and the networks between slices from "How to Scale Your Model"
(jax-ml.github.io/scaling-book, chapters 2 and 12), which gives measured rates. GPU: NVIDIA's data
sheets; what all-gathers reach inside a node is the 370 of 450 GB/s of chapter 12.
"""

import re
from dataclasses import dataclass
from typing import NamedTuple

GIB = 2**30


class Peak(NamedTuple):
    """Products, dense (no sparsity), FLOP/s a device as jax.devices() counts them.

    Attributes:
      bfloat16: products of bfloat16, or of float16 where there is no bfloat16 (T4).
      float8: products of float8, None where there are none.
    """

    bfloat16: float
    float8: float | None


# The first pattern that matches a device's kind counts, so what is special comes before what is
# general. TPUs: the table of Google Cloud's page of TPU7x, which has v5p, v6e and TPU7x, and the
# pages of v5e and v4; jax sees two devices on a chip of TPU7x. GPUs: NVIDIA's data sheets, their
# figures "with sparsity" halved; GB200 and GB300 are 1/72 of what the sheets of NVL72 say, B200 and
# B300 1/8 of those of HGX.
PEAKS: tuple[tuple[str, Peak], ...] = (
    (r"TPU v4", Peak(275e12, None)),
    (r"TPU v5 ?lite|TPU v5e", Peak(197e12, None)),
    (r"TPU v5", Peak(459e12, 459e12)),  # v5p calls itself "TPU v5"
    (r"TPU v6", Peak(918e12, 918e12)),
    (r"TPU ?v?7", Peak(2307e12 / 2, 4614e12 / 2)),
    (r"\bT4\b", Peak(65e12, None)),
    (r"\bL4\b", Peak(121e12, 242e12)),
    (r"A100", Peak(312e12, None)),
    (r"H100 PCIe", Peak(756e12, 1513e12)),
    (r"H100 NVL", Peak(835e12, 1671e12)),
    (r"H100|H200", Peak(989e12, 1979e12)),
    (r"GB[23]00", Peak(2500e12, 5000e12)),
    (r"B[23]00", Peak(2250e12, 4500e12)),
)


def peaks(kind: str) -> Peak | None:
    """What a device can do by its `device_kind`, e.g. "TPU v5 lite"; None if it is in no row."""
    return next((found for pattern, found in PEAKS if re.search(pattern, kind)), None)


def peak(kind: str) -> float | None:
    """FLOP/s of bfloat16 products of a device by its `device_kind`; None if it is in no row."""
    found = peaks(kind)
    return found and found.bfloat16


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
    # 92 % of the memory, as XLA_PYTHON_CLIENT_MEM_FRACTION in the launch line says. No published
    # figure of H200 and B200 was seen: they are taken to reach what H100 does of peak and NVLink.
    "a100": Chip(
        "a100", "NVIDIA A100-SXM4-80GB", 0.92 * 85174714368, 2039e9, 240e9, 25e9, 0.50, 1, 0, 8
    ),
    "h100": Chip(
        "h100", "NVIDIA H100 80GB HBM3", 0.92 * 84978434048, 3352e9, 370e9, 50e9, 0.45, 1, 0, 8
    ),
    "h200": Chip("h200", "NVIDIA H200", 0.92 * 151397597184, 4800e9, 370e9, 50e9, 0.45, 1, 0, 8),
    "b200": Chip("b200", "NVIDIA B200", 0.92 * 191514411008, 7672e9, 740e9, 50e9, 0.45, 1, 0, 8),
}
