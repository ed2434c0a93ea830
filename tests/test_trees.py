import jax.numpy as jnp

from llama_jax import presets
from llama_jax.config import edit
from llama_jax.trees import difference, flat, nested


def test_leaves_by_path_are_the_tree_again():
    tree = {"decoder": {"embed": {"w": 1}, "out": {"w": 2}}, "norm": 3}
    leaves = flat(tree)
    assert leaves == {"decoder/embed/w": 1, "decoder/out/w": 2, "norm": 3}
    assert nested(leaves) == tree


def test_paths_go_through_tuples_and_stop_at_what_counts_as_a_leaf():
    assert list(flat({"a": (jnp.zeros(1), {"b": 2})})) == ["a/0", "a/1/b"]
    assert flat({"a": {"x": 1}}, is_leaf=lambda t: "x" in t) == {"a": {"x": 1}}


def test_the_first_difference_of_two_configs_is_named():
    model = presets.get("tiny_decoder").model
    other = edit(model, "stack.pattern.0.ffn.hidden", 8)
    assert difference(model, model) is None
    assert difference(model, other) == "model.stack.pattern.0.ffn.hidden is 336"
    assert difference(other.stack, model, "x") == f"x is {other.stack!r}"
