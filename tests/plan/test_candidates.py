"""What the search is asked for, and what it takes among equals; AOT tests compile its plans."""

import pytest

from llama_jax.errors import UserError
from llama_jax.plan.candidates import fixed, frugal, name
from llama_jax.plan.chips import CHIPS
from llama_jax.plan.command import mesh_of
from llama_jax.plan.cost import Sent, of
from llama_jax.plan.model import Guess
from llama_jax.plan.refusals import likeness
from llama_jax.plan.topology import parse


def guess(rate, rows=8, remat="block", **mesh):
    chip = CHIPS["v5e"]
    work = chip.flops * chip.efficiency
    cost = of(chip, work, work, rate, 0.0, 0.0, Sent(0.0, 0.0, 0.0))
    return Guess({"data": 1} | mesh, remat, rows, {"weights": 1.0}, cost)


def test_a_mesh_is_read_from_text():
    assert mesh_of(None) is None
    assert mesh_of("fsdp=64, tensor=4") == {"fsdp": 64, "tensor": 4}
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
    ],
)
def test_a_mesh_in_another_form_is_refused(text, said):
    with pytest.raises(UserError, match=said):
        mesh_of(text)


@pytest.mark.parametrize("mesh", [{"fsdp": 100}, {"fsdp": -1, "tensor": 3}, {"fsdp": 0}])
def test_a_mesh_that_does_not_multiply_to_the_chips_is_refused(mesh):
    with pytest.raises(UserError, match="v6e:16x16 has 256 chips"):
        fixed(mesh, parse("v6e:16x16"))


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
