"""What the search is asked for, and what it takes among equals; AOT tests compile its plans."""

import dataclasses

import jax
import pytest

from llama_jax import edit, presets
from llama_jax.axes import FSDP_TENSOR_RESIDUAL
from llama_jax.chips import CHIPS
from llama_jax.config import Mesh
from llama_jax.errors import UserError
from llama_jax.optim.optimizer import Muon
from llama_jax.plan import search as searching
from llama_jax.plan.candidates import batches, fixed, frugal, guesses, meshes, name
from llama_jax.plan.cost import Sent, of
from llama_jax.plan.launch import launch
from llama_jax.plan.model import Guess, Shapes
from llama_jax.plan.program import changed, least, shared, total_rows
from llama_jax.plan.refusals import likeness
from llama_jax.plan.report import told
from llama_jax.plan.search import Plan, search
from llama_jax.plan.topology import parse
from llama_jax.presets.meshes import sizes_of
from llama_jax.train.flops import Work


def guess(rate, rows=8, remat="block", **mesh):
    chip = CHIPS["v5e"]
    work = chip.flops * chip.efficiency
    cost = of(chip, Work(work, 0.0), 128, work, rate, 0.0, 0.0, Sent(0.0, 0.0, 0.0))
    return Guess({"data": 1} | mesh, remat, rows, {"weights": 1.0}, cost)


def test_a_mesh_is_read_from_text():
    assert sizes_of("residual") == {"fsdp": -1, "tensor": 2}
    assert sizes_of("fsdp=64, tensor=4") == {"fsdp": 64, "tensor": 4}
    assert fixed({"fsdp": -1, "tensor": 4}, parse("v6e:16x16")) == {
        "data": 1,
        "fsdp": 64,
        "tensor": 4,
    }


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("fsdp:64", "write AXIS=SIZE"),
        ("fdsp=64", "no axis 'fdsp'.*Did you mean 'fsdp'"),
        ("fsdp=", "write AXIS=SIZE"),
        ("fsdp=8,fsdp=8", "gives fsdp twice"),
    ],
)
def test_a_mesh_in_another_form_is_refused(text, said):
    with pytest.raises(UserError, match=said):
        sizes_of(text)


@pytest.mark.parametrize("mesh", [{"fsdp": 100}, {"fsdp": -1, "tensor": 3}, {"fsdp": 0}])
def test_a_mesh_that_does_not_multiply_to_the_chips_is_refused(mesh):
    with pytest.raises(UserError, match="v6e:16x16 has 256 chips"):
        fixed(mesh, parse("v6e:16x16"))


def test_a_mesh_of_an_open_size_is_told_what_the_others_make():
    with pytest.raises(UserError, match="fsdp=-1,tensor=3 multiplies to 3 and what is left"):
        fixed({"fsdp": -1, "tensor": 3}, parse("v6e:16x16"))
    with pytest.raises(UserError, match="leaves 2 sizes open"):
        fixed({"fsdp": -1, "tensor": -1}, parse("v6e:16x16"))


def test_a_mesh_that_does_not_divide_a_weight_is_told_its_letter():
    shapes, topology = Shapes.of(presets.get("tiny_decoder"), ("none",)), parse("v5e:2x4")
    with pytest.raises(UserError, match=r"axis K \(key/value heads\) of length 2"):
        guesses(topology, shapes, jax.devices(), {"data": 1, "tensor": 8}, "none", 8)


def test_what_is_called_too_big_is_too_big(monkeypatch):
    topology, run = parse("h100:1"), presets.get("tiny_decoder")

    def compiled(topology, run, devices, shapes, guess, effort):
        return Plan(run, guess.mesh, guess.remat, guess.rows, None, guess.hbm, guess.cost, {})

    monkeypatch.setattr(searching, "evaluate", compiled)
    assert search(topology, run, jax.devices()[:1]).failed == {}


def test_among_plans_about_as_fast_the_fewest_rows_win():
    fast, nearly, slow = guess(1000, rows=32), guess(990, rows=16), guess(900, rows=8)
    assert frugal([fast, nearly, slow]) == [nearly]


def test_among_meshes_about_as_fast_the_one_with_fewer_axes_wins():
    plain, mixed = guess(1000, fsdp=256), guess(1010, fsdp=64, tensor=4)
    assert frugal([mixed, plain])[0] == plain
    much_faster = guess(1100, fsdp=64, tensor=4)
    assert frugal([much_faster, plain])[0] == much_faster


def test_a_candidate_is_named_by_what_is_above_one():
    assert name(guess(1, rows=16, fsdp=4)) == "fsdp=4 remat=block batch=16"
    assert name(guess(1, rows=2, remat="dots")) == "data=1 remat=dots batch=2"


def test_a_plan_is_near_what_was_asked_for_if_it_has_much_of_it():
    found = guess(1, rows=16, remat="dots", fsdp=4)
    assert likeness(found, {"fsdp": 4}, "dots", 16) == 3
    assert likeness(found, {"data": 1, "fsdp": 4, "tensor": 1}, "block", 32) == 1
    assert likeness(found, None, None, None) == 0


def test_streams_keep_their_proportions():
    seed = presets.get("seed_demo")
    assert {name: stream.batch for name, stream in seed.data.items()} == {
        "documents": 32,
        "captions": 128,
    }
    assert least(seed) == total_rows(seed) == 160
    assert shared(seed, 320) == {"documents": 64, "captions": 256}
    with pytest.raises(UserError, match="documents 32, captions 128; .* multiple of 5, .* 105"):
        shared(seed, 101)
    assert least(presets.get("tiny_decoder")) == 1


def test_rows_longer_than_the_context_are_refused():
    with pytest.raises(UserError, match="--sequence 9000 is beyond the context of .*, 8192"):
        changed(presets.get("llama3_8b"), sequence=9000)


def test_a_run_whose_objectives_compare_rows_keeps_its_batch_or_the_least_multiple_of_it():
    shapes = Shapes.of(presets.get("seed_vqa"), ("block", "dots"))
    assert shapes.least == 128 and shapes.leading == {128, 32}  # questions, and their pictures
    assert [batches(shapes, copies) for copies in (1, 32, 64, 256)] == [[128], [128], [256], [1024]]
    assert shapes.stored["none"] > shapes.stored["dots"] > shapes.stored["block"] > 0


def test_one_axis_alone_crosses_the_nodes_of_gpus():
    topology = parse("h100:2x8")
    shapes = Shapes.of(presets.get("tiny_decoder"), ("none",))
    found = list(meshes(topology, shapes.run, shapes))
    assert {"data": 1, "fsdp": 16, "context": 1, "tensor": 1} in found
    assert {"data": 2, "fsdp": 8, "context": 1, "tensor": 1} in found
    assert all(mesh["data"] % 2 == 0 or mesh["fsdp"] % 2 == 0 for mesh in found)
    with pytest.raises(UserError, match="h100:2x8 is 2 slices or nodes, .* data=2"):
        fixed({"tensor": 16}, topology)


def test_an_optimizer_with_products_of_its_own_and_an_average_of_the_weights_are_counted():
    tiny = presets.get("tiny_decoder")
    muon = dataclasses.replace(tiny, optimizer=Muon(), ema=0.99)
    plain, more = (Shapes.of(run, ("none",)) for run in (tiny, muon))
    assert plain.update == 0 < more.update
    assert more.row["none"] == pytest.approx(plain.row["none"])
    assert 0 < plain.row["none"].attention < plain.row["none"].total
    assert plain.moments == pytest.approx(2, rel=0.01)
    with_average = Shapes.of(dataclasses.replace(tiny, ema=0.99), ("none",))
    assert with_average.moments == pytest.approx(3, rel=0.01)


def test_the_launch_line_sets_every_axis_that_is_not_the_presets():
    run = edit(presets.get("tiny_decoder"), "mesh", Mesh(data=1, fsdp=2, stage=2, tensor=2))
    said = launch(parse("v5e:2x4"), "tiny_decoder", run)
    for part in ("mesh.data=1", "mesh.fsdp=2", "mesh.stage=2", "mesh.tensor=2", "--distributed"):
        assert part in said
    wide = dataclasses.replace(run, rules=FSDP_TENSOR_RESIDUAL)
    said = launch(parse("v5e:2x4"), "tiny_decoder", wide)
    # That mesh has a tensor axis of two by itself.
    assert "--mesh residual" in said and "mesh.tensor" not in said and "mesh.stage=2" in said


def test_numbers_come_in_the_unit_that_suits_them():
    units = ((1e12, "TFLOP"), (1e9, "GFLOP"))
    assert [told(n, *units) for n in (457e12, 1e12, 5e9, 2e8)] == [
        "457.0 TFLOP",
        "1.0 TFLOP",
        "5.0 GFLOP",
        "0.2 GFLOP",
    ]
