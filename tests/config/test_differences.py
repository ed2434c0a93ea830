from llama_jax.config.differences import differences


def test_differences_go_into_lists_and_name_what_came_or_went():
    assert differences({"a": [1, 2]}, {"a": [1, 3]}) == ["a.1 was 2, is 3"]
    assert differences({"a": 1}, {"b": 2}) == ["a was 1, is null", "b was null, is 2"]
    assert differences({"a": [1]}, {"a": [1, 2]}) == ["a was [1], is [1, 2]"]
