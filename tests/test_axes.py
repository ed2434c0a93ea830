"""The alphabet: specs, meshes, constraints, and that nothing is replicated in silence."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from llama_jax import axes


def test_letters_become_mesh_axes_by_the_tables():
    assert axes.weight_spec("LDNH") == P("stage", "fsdp", "tensor", None)
    assert axes.activation_spec("BTD") == P(("data", "fsdp", "expert", "stage"), "context", None)


def test_an_unknown_letter_is_refused():
    with pytest.raises(ValueError, match="unknown axis letter 'Q'"):
        axes.shard(jnp.zeros((1,)), "Q")
    with pytest.raises(ValueError, match="unknown axis letter"):
        axes.Rules(weights=(("Z", "fsdp"),), activations=())


def test_a_wrong_rank_is_refused():
    with pytest.raises(ValueError, match="has 2 axes, 'BTD' names 3"):
        axes.shard(jnp.zeros((2, 3)), "BTD")


def test_one_mesh_axis_for_two_letters_is_refused():
    with pytest.raises(ValueError, match="twice"):
        axes.weight_spec("NK")


def test_a_mesh_fills_the_free_size(mesh):
    made = mesh(8, fsdp=2, tensor=2)
    split = {axis: size for axis, size in made.shape.items() if size > 1}
    assert split == {"data": 2, "fsdp": 2, "tensor": 2}
    assert made.axis_names == axes.MESH_AXES


@pytest.mark.parametrize(
    "sizes", [{"data": 3}, {"data": -1, "fsdp": 3}, {"data": -1, "fsdp": -1}, {"data": 0}]
)
def test_sizes_that_do_not_fit_are_refused(mesh, sizes):
    with pytest.raises(ValueError, match="mesh"):
        mesh(8, **sizes)


def test_an_axis_that_there_is_not_is_named_with_the_nearest():
    with pytest.raises(ValueError, match=r"no mesh axis 'tensors'; there are stage, .*tensor"):
        axes.make_mesh(tensors=2)


def test_a_constraint_reaches_the_compiled_program(mesh):
    with axes.using(mesh(8, fsdp=2, tensor=2)):
        found = jax.jit(lambda x: axes.shard(x, "BTF"))(jnp.zeros((8, 3, 4)))
    # Axes of one device are left out.
    assert found.sharding.spec == P(("data", "fsdp"), None, "tensor")


def test_without_a_mesh_a_constraint_does_nothing():
    x = jnp.zeros((3, 5))
    assert axes.shard(x, "BD") is x


def test_an_axis_that_cannot_be_divided_names_its_letter(mesh):
    with axes.using(mesh(8)), pytest.raises(ValueError, match=r"axis B \(batch\) of length 6"):
        axes.shard(jnp.zeros((6, 2)), "BD")


def test_an_axis_of_length_one_stays_whole(mesh):
    with axes.using(mesh(8)):
        found = jax.jit(lambda x: axes.shard(x, "BD"))(jnp.zeros((1, 8)))
    assert found.shape == (1, 8)


def test_rules_are_those_of_the_innermost_block(mesh):
    with axes.using(mesh(8, fsdp=8), axes.DATA):
        assert axes.weight_spec("DF") == P(None, None)
    assert axes.weight_spec("DF") == P("fsdp", "tensor")


def test_the_sharded_product_equals_the_whole_one(mesh):
    x, w = np.random.default_rng(0).normal(size=(2, 8, 8)).astype(np.float32)

    def product(x, w):
        return axes.shard(axes.shard(x, "BD") @ w, "BF")

    expected = product(x, w)
    with axes.using(mesh(8, fsdp=2, tensor=4)):
        found = jax.jit(product)(x, w)
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_a_mesh_that_does_not_multiply_says_what_to_give(mesh):
    with pytest.raises(ValueError, match=r"of data=-1, fsdp=3 needs a multiple of 3 .* 8 are here"):
        mesh(8, fsdp=3)
    with pytest.raises(ValueError, match=r"data=3 needs 3 devices, 8 are here; .* product is 8"):
        mesh(8, data=3)


@dataclasses.dataclass(frozen=True)
class Device:
    """As much of a device as its place on a mesh asks for."""

    id: int
    slice_index: int
    platform: str = "cpu"  # of a TPU it would ask for the place on the torus
    device_kind: str = "cpu"
    process_index: int = 0


SLICES = [Device(i, i // 4) for i in range(8)]


@pytest.mark.parametrize(
    ("sizes", "across"),
    [
        ({"data": 2, "fsdp": 4}, "data"),
        ({"data": 4, "tensor": 2}, "data"),
        ({"data": 1, "stage": 2, "fsdp": 4}, "stage"),
        ({"data": 1, "fsdp": 4, "tensor": 2}, "fsdp"),
    ],
)
def test_one_axis_alone_crosses_slices(sizes, across):
    grid = axes._laid_out([sizes.get(axis, 1) for axis in axes.MESH_AXES], SLICES)
    where = np.vectorize(lambda device: device.slice_index, otypes=[int])(grid)
    for i, axis in enumerate(axes.MESH_AXES):
        assert np.any(np.diff(where, axis=i)) == (axis == across)


def test_slices_that_no_axis_can_cross_are_refused():
    sizes = [{"data": 1, "tensor": 8}.get(axis, 1) for axis in axes.MESH_AXES]
    with pytest.raises(ValueError, match="8 devices are in 2 slices and none of data=1, .* data=2"):
        axes._laid_out(sizes, SLICES)


def test_a_pipeline_goes_over_one_axis(mesh):
    rules = axes.Rules(weights=(("L", ("stage", "data")),), activations=())
    with axes.using(mesh(4, data=2, stage=2), rules), pytest.raises(ValueError, match="one axis"):
        axes.stages()


def test_within_an_axis_split_by_hand_the_rules_are_about_the_others():
    with axes.within("stage"):
        assert axes.activation_spec("BT") == P(("data", "fsdp", "expert"), "context")
        assert axes.weight_spec("LDF") == P(None, "fsdp", "tensor")
    assert axes.weight_spec("L") == P("stage")


def test_rows_of_a_table_lie_as_it_does_before_they_are_sent(mesh):
    def lies(x):
        return jax.jit(lambda x: axes.as_looked_up(x, "BTD"))(x).sharding.spec

    x = jnp.zeros((8, 4, 16))
    with axes.using(mesh(4, fsdp=4)):
        assert lies(x) == P(None, None, "fsdp")
    with axes.using(mesh(8, data=2, fsdp=2, context=2)):
        # Rows stay apart over the axes that split no row of the table.
        assert lies(x) == P("data", "context", "fsdp")
    with axes.using(mesh(4, fsdp=2, tensor=2)):
        assert axes.as_looked_up(x, "BTD") is x
    assert axes.as_looked_up(x, "BTD") is x
    with axes.using(mesh(4, fsdp=4)), pytest.raises(ValueError, match="axis D .* not divisible"):
        axes.as_looked_up(jnp.zeros((8, 4, 6)), "BTD")
