import jax.numpy as jnp

from llama_jax.trees import flat, nested


def test_leaves_by_path_are_the_tree_again():
    tree = {"decoder": {"embed": {"w": 1}, "out": {"w": 2}}, "norm": 3}
    leaves = flat(tree)
    assert leaves == {"decoder/embed/w": 1, "decoder/out/w": 2, "norm": 3}
    assert nested(leaves) == tree


def test_paths_go_through_tuples_and_stop_at_what_counts_as_a_leaf():
    assert list(flat({"a": (jnp.zeros(1), {"b": 2})})) == ["a/0", "a/1/b"]
    assert flat({"a": {"x": 1}}, is_leaf=lambda t: "x" in t) == {"a": {"x": 1}}
