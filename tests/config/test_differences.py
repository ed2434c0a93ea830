from llama_jax import presets
from llama_jax.config import edit
from llama_jax.config.differences import difference, differences


def test_differences_go_into_lists_and_name_what_came_or_went():
    assert differences({"a": [1, 2]}, {"a": [1, 3]}) == ["a.1 was 2, is 3"]
    assert differences({"a": 1}, {"b": 2}) == ["a was 1, is null", "b was null, is 2"]
    assert differences({"a": [1]}, {"a": [1, 2]}) == ["a was [1], is [1, 2]"]


def test_the_first_difference_of_two_configs_is_named():
    model = presets.get("tiny_decoder").model
    other = edit(model, "stack.pattern.0.ffn.hidden", 8)
    assert difference(model, model) is None
    assert difference(model, other) == "model.stack.pattern.0.ffn.hidden is 336"
    assert difference(other.stack, model, "x") == f"x is {other.stack!r}"
