"""Topologies by name, and what their links carry."""

import types

import numpy as np
import pytest

from llama_jax.chips import CHIPS, OF_HOST
from llama_jax.errors import UserError
from llama_jax.plan.gpus import GPUS
from llama_jax.plan.hlo import Collective
from llama_jax.plan.network import Span, seconds, span, total
from llama_jax.plan.topology import Topology, parse


@pytest.mark.parametrize(
    ("text", "chips", "hosts"),
    [
        ("v6e:16x16", 256, 64),
        ("v5p:8x8x8", 512, 128),
        ("v5e:2x2", 4, 1),
        ("v6e:16x16:4", 1024, 256),
        ("h100:8", 8, 1),
        ("h100:32x8", 256, 32),
        ("h100:2x4", 8, 2),
        ("h200:8", 8, 1),
        ("b200:2x8", 16, 2),
        ("v4:4x4x4", 64, 16),
        ("tpu7x:2x2x1", 4, 1),
        ("tpu7x:4x4x4:2", 128, 32),
        ("gb200:72", 72, 18),
        ("gb200:4x72", 288, 72),
    ],
)
def test_a_name_says_the_chips_and_reads_back(text, chips, hosts):
    topology = parse(text)
    assert (topology.chips, topology.hosts, str(topology)) == (chips, hosts, text)


@pytest.mark.parametrize(
    ("text", "rings"),
    [
        ("v6e:16x16", (True, True, False)),
        ("v5e:8x16", (False, True, False)),
        ("v6e:4x4", (False, False, False)),
        ("v5p:4x4x8", (True, True, True)),
        ("v5p:2x2x4", (False, False, False)),
    ],
)
def test_the_compiler_is_told_which_axes_are_rings(text, rings, monkeypatch):
    asked = {}

    def described(**options):
        asked.update(options)
        return types.SimpleNamespace(devices=[])

    monkeypatch.setattr("jax.experimental.topologies.get_topology_desc", described)
    monkeypatch.setattr("llama_jax.plan.topology._installed", lambda package: True)
    topology = parse(text)
    assert topology.devices() == []
    assert (asked["topology_name"], asked["wrap"]) == (text, rings)


def test_a_gpu_is_to_the_compiler_what_it_is_to_the_plan():
    assert {name for name, chip in CHIPS.items() if chip.gpu} == set(GPUS)
    for name, gpu in GPUS.items():
        chip = CHIPS[name]
        assert (chip.kind, chip.hbm) == (gpu.name, pytest.approx(0.92 * gpu.memory))
        assert chip.bandwidth == pytest.approx(gpu.bandwidth, rel=1e-3)  # rounded to GB/s


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("v6e", "write CHIP:SHAPE"),
        ("v9:2x2", "no chip 'v9'"),
        ("v6e:2x2x2", "expected two sizes"),
        ("v5p:8x8", "v5p:8x8x8"),
        ("h100:16", "at most 8 a node"),
        ("gb200:2x73", "at most 72 a node"),
        ("tpu7x:4x4", "expected three sizes"),
        ("v6e:0x4", "expected two sizes"),
        ("v5e:32x32", "a pod of v5e is 16x16 chips; .* v5e:16x16:2"),
        ("v5p:4x4x64", "a pod of v5p is 16x20x28 chips"),
    ],
)
def test_a_name_that_is_none_is_told_what_there_is(text, said):
    with pytest.raises(UserError, match=said):
        parse(text)


def test_a_gather_over_two_closed_axes_uses_four_links():
    v6e = Topology(CHIPS["v6e"], (16, 16))
    both = seconds(v6e, "all-gather", 256e6, Span((16, 16), 1, frozenset({"fsdp"})))
    # Each chip receives 255 of 256 parts over 4 links of 90 GB/s.
    assert both == pytest.approx(255e6 / 360e9)
    one = seconds(v6e, "all-gather", 256e6, Span((16, 1), 1, frozenset({"fsdp"})))
    assert one == pytest.approx(240e6 / 180e9)


def test_a_part_of_an_axis_is_a_line_and_receives_from_one_side():
    v6e = Topology(CHIPS["v6e"], (16, 16))
    assert seconds(v6e, "all-gather", 8e6, Span((8, 1), 1, frozenset())) == pytest.approx(
        7e6 / 90e9
    )


def test_an_axis_of_a_slice_smaller_than_a_cube_is_a_line():
    small, cubes = (Topology(CHIPS["v5p"], shape) for shape in ((2, 2, 4), (4, 4, 8)))
    along = Span((1, 1, 4), 1, frozenset({"fsdp"}))
    assert seconds(small, "all-gather", 4e9, along) == pytest.approx(3e9 / 90e9)
    assert seconds(cubes, "all-gather", 4e9, along) == pytest.approx(3e9 / 180e9)


def test_an_all_reduce_is_a_scatter_and_a_gather():
    v5p = Topology(CHIPS["v5p"], (8, 8, 8))
    whole = Span((8, 8, 8), 1, frozenset({"fsdp"}))
    gather, both = (seconds(v5p, kind, 1e9, whole) for kind in ("all-gather", "all-reduce"))
    assert both == pytest.approx(2 * gather)


def test_slices_add_the_slow_network_and_nodes_of_gpus_work_beside_it():
    tpu = Topology(CHIPS["v6e"], (16, 16), 2)
    alone = seconds(tpu, "all-reduce", 1e9, Span((16, 16), 1, frozenset()))
    across = seconds(tpu, "all-reduce", 1e9, Span((16, 16), 2, frozenset()))
    assert across == pytest.approx(alone + 2 * 1e9 / 256 / 2 / 12.5e9)
    gpu = Topology(CHIPS["h100"], (32, 8))
    across = seconds(gpu, "all-gather", 1e9, Span((8,), 32, frozenset()))
    assert across == pytest.approx(max(7 / 8 * 1e9 / 370e9, 1e9 / 8 * 31 / 32 / 50e9))


def test_the_two_devices_of_a_chip_share_its_links_and_hand_each_other_their_halves():
    tpu7x = Topology(CHIPS["tpu7x"], (4, 4, 4))
    assert (tpu7x.chips, tpu7x.size, tpu7x.unit) == (64, 128, "device")
    assert tpu7x.chip.flops == pytest.approx(2307e12 / 2)
    along = frozenset({"fsdp"})
    both = seconds(tpu7x, "all-gather", 128e6, Span((4, 4, 4), 1, along, each=2))
    # A half over the half of six links of 90 GB/s, and a half from the other at six times a link.
    assert both == pytest.approx(64e6 * 63 / 64 / (6 * 45e9) + 64e6 / (6 * 90e9))
    alone = seconds(tpu7x, "all-gather", 128e6, Span((4, 4, 4), 1, along))
    assert alone == pytest.approx(128e6 * 63 / 64 / (6 * 45e9))
    handed = seconds(tpu7x, "all-reduce", 128e6, Span((1, 1, 1), 1, along, each=2))
    assert handed == pytest.approx(2 * 64e6 / (6 * 90e9))


def test_a_group_over_both_devices_of_a_chip_spans_the_chip_once():
    class Device:
        def __init__(self, at):
            self.coords, self.core_on_chip = (at // 2 % 2, at // 4, 0), at % 2

    tpu7x = Topology(CHIPS["tpu7x"], (2, 2, 1))
    devices, sizes = [Device(at) for at in range(8)], {"fsdp": 4, "tensor": 2}
    assert span(tpu7x, devices, sizes, (0, 1)) == Span((1, 1, 1), 1, frozenset({"tensor"}), 2)
    assert span(tpu7x, devices, sizes, range(8)) == Span((2, 2, 1), 1, frozenset(sizes), 2)
    assert span(tpu7x, devices, sizes, (0, 2, 4, 6)) == Span((2, 2, 1), 1, frozenset({"fsdp"}))


def test_a_host_shares_its_memory_and_a_chip_its_link_among_devices():
    whole, half = CHIPS["v6e"], CHIPS["tpu7x"]
    assert whole.host_memory == pytest.approx(OF_HOST * 720e9 / 4)
    assert half.host_memory == pytest.approx(OF_HOST * 960e9 / 8)
    assert (whole.host_link, half.host_link) == (32e9, 16e9)


def test_rings_in_both_directions_take_the_time_of_one():
    class Device:
        def __init__(self, at):
            self.coords = (at % 2, at // 2, 0)

    v6e = Topology(CHIPS["v6e"], (2, 2))
    devices = np.array([Device(at) for at in range(4)])
    mesh = types.SimpleNamespace(devices=devices, shape={"fsdp": 4})
    forth = Collective("collective-permute", 90_000_000, (0, 1, 3, 2), 5)
    back = forth._replace(group=(0, 2, 3, 1))
    assert sum(s for _, _, s in total(v6e, mesh, [forth])) == pytest.approx(5e-3)
    assert sum(s for _, _, s in total(v6e, mesh, [forth, back])) == pytest.approx(5e-3)
