"""What a chip can do: peaks from its maker, and what of them is reached, in one place.

Sources. TPU: Google Cloud's "System architecture" page of each generation for FLOP/s and HBM; the
links' rates a direction and the networks between slices from "How to Scale Your Model"
(jax-ml.github.io/scaling-book, chapters 2 and 12), which gives measured rates; TPU7x has the 1,200
GB/s a chip of v5p, and so is taken to have its links. GPU: NVIDIA's data sheets; what all-gathers
reach inside a node is the 370 of 450 GB/s of chapter 12.
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


class Host(NamedTuple):
    """A machine with chips in it.

    Attributes:
      memory: bytes of its own.
      chips: how many it has.
      link: bytes a second one way between a chip and that memory.
    """

    memory: float
    chips: int
    link: float


# Of a host's memory the system, what reads the data and the libraries take the rest; a judgement.
OF_HOST = 0.85


@dataclass(frozen=True)
class Chip:
    """One device as jax counts them; rates are a second.

    Attributes:
      name: as in a topology, "v6e".
      kind: what jax calls it, `device_kind`.
      hbm: bytes that a program may use.
      bandwidth: bytes read or written in HBM.
      link: bytes one way over one link to a neighbour, of the whole chip; of a GPU, over NVLink to
        its domain.
      dcn: bytes one way between slices, of a GPU between domains (its own adapter).
      efficiency: share of the peak that matrix products reach inside a train step, all that is
        not a product or a network included; the one constant of a family, chosen beside published
        figures (`experiments/plan_published.py` has the errors that it leaves).
      tile: rows and columns of its matrix unit, which smaller products leave idle; 1 of a GPU.
      wraps: a torus axis of so many chips, or a multiple, is closed to a ring; 0: no torus.
      sides: axes of its torus; of GPUs 2, domains and the GPUs of one.
      host: the machine that it is in.
      domain: GPUs that NVLink joins.
      devices: how many jax sees on a chip.
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
    sides: int
    host: Host
    domain: int = 1
    devices: int = 1

    @property
    def flops(self) -> float:
        """Peak of bfloat16 products."""
        found = peak(self.kind)
        assert found is not None, self.kind
        return found

    @property
    def host_memory(self) -> float:
        """Bytes of the host's memory that are this device's to use."""
        return OF_HOST * self.host.memory / self.host.chips / self.devices

    @property
    def host_link(self) -> float:
        """Bytes a second one way between this device and that memory."""
        return self.host.link / self.devices

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
# Copies to and from the host's memory are taken to hide as well.
OVERLAP = 0.9
# Two devices of a chip hand each other bytes so many times as fast as one link of the chip (Google
# Cloud's page of TPU7x).
DIE_TO_DIE = 6

# Memory of the machine types of four chips (Google Cloud's pages of TPU7x, which has v5p, v6e and
# TPU7x, and of v5e; ct4p-hightpu-4t) and of eight GPUs (a2-ultragpu, a3-highgpu, a3-ultragpu,
# a4-highgpu; of four GB200 a4x-highgpu-4g). To the host: "How to Scale Your Model", chapter 2, has
# 15 GB/s a chip, and 32 of v6e, which TPU7x is taken to have too; of GPUs NVIDIA's data sheets,
# half of PCIe's figure for both ways, of GB200 half a Grace's 450 GB/s one way.
HOSTS = {
    "v4": Host(407e9, 4, 15e9),
    "v5e": Host(192e9, 4, 15e9),
    "v5p": Host(448e9, 4, 15e9),
    "v6e": Host(720e9, 4, 32e9),
    "tpu7x": Host(960e9, 4, 32e9),
    "a100": Host(1360e9, 8, 32e9),
    "h100": Host(1872e9, 8, 64e9),
    "h200": Host(2952e9, 8, 64e9),
    "b200": Host(3968e9, 8, 64e9),
    "gb200": Host(884e9, 4, 225e9),
}


class Rates(NamedTuple):
    """Bytes a second: of HBM, of a link, and between slices or domains."""

    hbm: float
    link: float
    dcn: float


def _tpu(
    name: str,
    kind: str,
    hbm: float,
    rates: Rates,
    efficiency: float,
    tile: int,
    sides: int,
    devices: int = 1,
) -> Chip:
    wraps = 4 if sides == 3 else 16
    shape = tile, wraps, sides
    return Chip(name, kind, hbm * GIB, *rates, efficiency, *shape, HOSTS[name], devices=devices)


def _gpu(
    name: str, kind: str, memory: float, rates: Rates, efficiency: float, domain: int = 8
) -> Chip:
    # 92 % of the memory, as XLA_PYTHON_CLIENT_MEM_FRACTION in the launch line says.
    return Chip(name, kind, 0.92 * memory, *rates, efficiency, 1, 0, 2, HOSTS[name], domain)


# HBM that the compilers leave to a program, its bandwidth, the link, the network between slices or
# domains, efficiency, the matrix unit, sides of the torus, devices a chip; of GPUs the domain. No
# published figure of v4, TPU7x, H200, B200 and GB200 was compared: v4 and TPU7x are taken to reach
# what v5p does of peak, the GPUs what H100 does of peak and of NVLink.
CHIPS: dict[str, Chip] = {
    chip.name: chip
    for chip in (
        _tpu("v4", "TPU v4", 30.75, Rates(1200e9, 45e9, 6.25e9), 0.74, 128, 3),
        _tpu("v5e", "TPU v5 lite", 15.75, Rates(819e9, 45e9, 6.25e9), 0.74, 128, 2),
        _tpu("v5p", "TPU v5", 95.74, Rates(2765e9, 90e9, 6.25e9), 0.74, 128, 3),
        _tpu("v6e", "TPU v6 lite", 31.25, Rates(1640e9, 90e9, 12.5e9), 0.56, 256, 2),
        # Half a chip: 192 GiB and 7,380 GB/s are a chip's.
        _tpu("tpu7x", "TPU7x", 94.75, Rates(3690e9, 90e9, 6.25e9), 0.74, 256, 3, 2),
        _gpu("a100", "NVIDIA A100-SXM4-80GB", 85174714368, Rates(2039e9, 240e9, 25e9), 0.50),
        _gpu("h100", "NVIDIA H100 80GB HBM3", 84978434048, Rates(3352e9, 370e9, 50e9), 0.45),
        _gpu("h200", "NVIDIA H200", 151397597184, Rates(4800e9, 370e9, 50e9), 0.45),
        _gpu("b200", "NVIDIA B200", 191514411008, Rates(7672e9, 740e9, 50e9), 0.45),
        _gpu("gb200", "NVIDIA GB200", 197897748480, Rates(7928e9, 740e9, 50e9), 0.45, 72),
    )
}
