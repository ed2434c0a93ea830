"""A plan of a tiny model compiles for chips that are not there, and says what the compiler says."""

import dataclasses
import json
import math
import shlex
from importlib import metadata

import numpy as np
import pytest

from llama_jax import presets
from llama_jax.__main__ import main
from llama_jax.axes import MESH_AXES, make_mesh
from llama_jax.chips import Host
from llama_jax.errors import UserError
from llama_jax.layers.stack import Stack
from llama_jax.plan.candidates import fixed, guesses
from llama_jax.plan.launch import launch
from llama_jax.plan.model import Shapes
from llama_jax.plan.program import QUICK, changed, stacks
from llama_jax.plan.report import as_json, lines
from llama_jax.plan.search import Found, evaluate, search
from llama_jax.plan.topology import parse
from tests.demo import small

TPU7X = pytest.mark.skipif(
    metadata.version("libtpu").startswith("0.0.42"), reason="jax 0.10's libtpu has no TPU7x"
)
# v4's chips are whole, and TPU7x has two devices a chip.
DEVICES = [
    ("v4:2x2x1", 4, "TPU v4"),
    pytest.param("tpu7x:2x2x1", 8, "TPU7x", marks=TPU7X),
    pytest.param("tpu7x:2x2x1:2", 16, "TPU7x", marks=TPU7X),
    ("gb200:2x72", 144, "NVIDIA GB200"),
]
# A gather of weights may be guessed wrong by this, for XLA keeps, repeats and splits some.
NETWORK = 0.5


@pytest.fixture(scope="module")
def run():
    """A LLaMA of the published shape of a block, two layers deep."""
    small = presets.get("llama3_2_1b")
    stack = small.model.stack
    decoder = dataclasses.replace(small.model, vocab=4096, width=512, stack=Stack(stack.pattern, 2))
    small = dataclasses.replace(small, model=decoder)
    return changed(small, sequence=1024)


@pytest.mark.parametrize("name", ["v5e:2x2", "h100:4"])
def test_a_plan_is_what_the_compiler_says_and_near_what_shapes_say(run, name):
    topology = parse(name)
    devices, shapes = topology.devices(), Shapes.of(run, ("block",))
    guess = guesses(topology, shapes, devices, {"data": 1, "fsdp": 4}, "block", 8)[0]
    plan = evaluate(topology, run, devices, shapes, guess, QUICK)
    assert plan.compiled is not None
    parameters = sum(math.prod(w.shape) for w in shapes.weights)
    # Matrices are split over all chips, norms alone are not.
    assert plan.compiled.weights == pytest.approx(parameters, rel=0.01)
    assert plan.compiled.optimizer == pytest.approx(2 * parameters, rel=0.01)
    assert plan.compiled.temporary > 0
    kernel = "mosaic_gpu" if topology.chip.gpu else "pallas_tpu"
    assert any(f": {kernel}" in line for line in plan.compiled.receipts)
    assert plan.cost.network == pytest.approx(guess.cost.network, rel=NETWORK)
    found = as_json(topology, "llama3_2_1b", plan, 1.0)
    assert json.loads(json.dumps(found)) == found
    assert found["launch"] == launch(topology, "llama3_2_1b", plan.run)
    assert found["launch"] in lines(topology, "llama3_2_1b", Found([plan], {}, 1), 1.0)[-1]


def test_what_does_not_fit_names_its_largest_part(run):
    topology = parse("v5e:2x2")
    mesh = fixed({"fsdp": -1}, topology)
    said = r"of 15\.8 GiB a chip, activations .* the largest; the nearest that fits: --mesh fsdp=4 "
    with pytest.raises(UserError, match=said + r"--remat none --batch \d+ \("):
        search(topology, run, topology.devices(), mesh, "none", 4096)


def test_a_topology_that_libtpu_does_not_know_is_told_the_known_ones():
    with pytest.raises(UserError, match=r"does not know topology v6e:3x5.*v6e:16x16"):
        parse("v6e:3x5").devices()


def test_a_remat_policy_is_set_in_every_stack(run):
    assert [s.remat for s in stacks(changed(run, remat="dots").model).values()] == ["dots"]


@pytest.mark.parametrize(("name", "count", "kind"), DEVICES)
def test_a_topology_has_the_devices_that_the_plan_counts(name, count, kind):
    topology = parse(name)
    devices = topology.devices()
    assert len(devices) == topology.size == count
    assert {device.device_kind for device in devices} == {topology.chip.kind} == {kind}


def test_a_libtpu_that_cannot_compile_for_a_chip_is_named(monkeypatch):
    monkeypatch.setattr(metadata, "version", lambda package: "0.0.42.1")
    with pytest.raises(UserError, match="needs libtpu 0.0.48 or later, and 0.0.42.1 is installed"):
        parse("tpu7x:2x2x1").devices()


@pytest.mark.parametrize(
    ("name", "chips"),
    [("v6e:2x2", "4 chips"), pytest.param("tpu7x:2x2x1", "4 chips (2 devices each)", marks=TPU7X)],
)
def test_inputs_that_are_offloaded_are_priced_in_the_hosts_memory(run, name, chips):
    topology = parse(name)
    devices, shapes = topology.devices(), Shapes.of(run, ("offload:input",))
    mesh = {"data": 1, "fsdp": topology.size}
    batch = 2 * topology.size
    guess = guesses(topology, shapes, devices, mesh, "offload:input", batch)[0]
    plan = evaluate(topology, run, devices, shapes, guess, QUICK)
    inputs = 2 * 2 * 1024 * 512 * 2  # layers, a device's rows, tokens, width, bfloat16
    assert plan.host["offloaded"] == pytest.approx(inputs, rel=0.01)
    assert guess.host == pytest.approx(plan.host, rel=0.01)
    assert plan.cost.host == pytest.approx(2 * plan.host["offloaded"] / topology.chip.host_link)
    said = lines(topology, "llama3_2_1b", Found([plan], {}, 1), 1.0)
    assert any(chips in line for line in said)
    assert any("remat=offload" in line and "host's memory" in line for line in said)
    assert "model.stack.saved=('input',)" in shlex.split(said[-1])


def test_what_the_hosts_memory_does_not_hold_is_refused(run):
    chip = dataclasses.replace(parse("v5e:2x2").chip, host=Host(1e6, 4, 15e9))
    topology = dataclasses.replace(parse("v5e:2x2"), chip=chip)
    with pytest.raises(UserError, match=r"GiB of the host's memory \(offloaded .*, checkpoint"):
        search(topology, run, topology.devices(), {"data": 1, "fsdp": 4}, "offload:input", 8)


def test_decoding_keeps_one_cache(run, monkeypatch, capsys):
    monkeypatch.setattr(presets, "get", lambda name: run)
    arguments = ["plan", "decode", "small", "--topology", "v5e:2x2", "--sequence", "8192"]
    assert main([*arguments, "--batch", "64", "--json"]) == 0
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    hbm = found["hbm_bytes_per_device"]
    assert hbm["temporary"] < 0.2 * hbm["cache"]
    assert any("on tpu: pallas_tpu_decode" in line for line in found["backends"])  # heads of 64


def test_decoding_over_an_axis_that_it_does_not_use_is_refused(capsys):
    arguments = ["plan", "decode", "llama3_2_1b", "--topology", "v6e:2x4"]
    assert main([*arguments, "--mesh", "data=2,fsdp=4"]) == 2
    assert "over data and tensor, not over fsdp; give e.g. tensor=4" in capsys.readouterr().err


def test_the_seeds_system_is_planned_with_the_batches_of_its_streams(monkeypatch, capsys):
    pretrain = small.pretrain()
    monkeypatch.setattr(presets, "get", lambda name: pretrain)
    assert main(["plan", "small", "--topology", "v5e:2x2", "--remat", "block", "--json"]) == 0
    out = capsys.readouterr().out
    found = json.loads(out.splitlines()[-1])
    assert found["streams"] == {name: stream.batch for name, stream in pretrain.data.items()}
    assert found["batch"] == sum(found["streams"].values()) and found["sequence"] is None
    assert found["hbm_bytes_per_device"]["temporary"] > 0 < found["tokens_per_second_per_chip"]
    assert " MiB" in out and "rows of all chips: " in out


def test_the_nodes_of_a_gpu_topology_are_laid_out_as_those_of_a_cluster():
    devices = parse("h100:2x8").devices()
    grid = make_mesh(data=2, stage=2, tensor=4, devices=devices).devices
    node = np.vectorize(lambda device: device.process_index)(grid)
    across = MESH_AXES.index("data")
    assert (np.ptp(node, axis=across) == 1).all()
    assert np.ptp(np.take(node, 0, across)) == 0
