from llama_jax.messages import cut, short


def test_what_is_long_is_cut_and_says_so():
    assert short("a") == "'a'" and short(list(range(3))) == "[0, 1, 2]"
    assert short([0] * 100) == "a list of 100"
    long = short("x" * 200)
    assert len(long) == 80 and long.endswith("...")
    assert cut("abcdef", 5) == "ab..."
