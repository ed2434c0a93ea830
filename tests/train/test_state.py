import jax
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from llama_jax.errors import UserError
from tests.train.tiny import Training, training


def test_moments_are_split_as_their_weights_and_counters_are_everywhere():
    abstract = training(8, fsdp=2, tensor=2).plan.abstract
    specs = {
        jax.tree_util.keystr(path): leaf.sharding.spec
        for path, leaf in jax.tree_util.tree_leaves_with_path(abstract)
    }
    weights = [spec for name, spec in specs.items() if "up" in name and "'w'" in name]
    assert weights == [P("fsdp", "tensor")] * 3  # the weight, its mean and its mean square
    assert specs[".step"] == P() and specs[".key"] == P()
    counts = [spec for name, spec in specs.items() if "count" in name]
    assert counts and set(counts) == {P()}


def test_the_initial_weights_do_not_depend_on_the_mesh():
    one, many = training().init(3).params, training(8, fsdp=2, tensor=2).init(3).params
    jax.tree.map(np.testing.assert_array_equal, one, many)


def test_the_arrays_are_what_the_plan_says():
    tiny = training(8, fsdp=2, tensor=2)
    state = tiny.init()
    found = jax.tree.map(lambda x: (x.shape, x.dtype, x.sharding), state)
    wanted = jax.tree.map(lambda x: (x.shape, x.dtype, x.sharding), tiny.plan.abstract)
    assert found == wanted
    assert tiny.plan.parameters == sum(x.size for x in jax.tree.leaves(state.params))
    assert tiny.plan.letters["up/w"] == "DF" and tiny.plan.letters["norm/scale"] == "D"


def test_an_axis_that_the_mesh_cannot_divide_is_named(mesh):
    with pytest.raises(UserError, match=r"axis [DFV] .*not divisible by the 7"):
        Training(mesh(7, data=1, tensor=7))
