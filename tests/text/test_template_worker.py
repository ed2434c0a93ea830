"""What a foreign template may not say and may not take: each kind by an example that does nothing.

None of these would do harm anywhere. They are of the kinds that the allow-list refuses, or small
and over a budget that was lowered for them.
"""

import json
import re

import pytest

from llama_jax.errors import FormatError
from llama_jax.text import render as rendering
from llama_jax.text import template_worker as worker

HELLO = [{"messages": [{"role": "user", "content": "Hi"}]}]


@pytest.fixture(autouse=True)
def _no_process_left():
    """What is started with other limits here serves no other test."""
    rendering.end()
    yield
    rendering.end()


def answer(source, **variables):
    """What the worker says to a template and to a request to render it."""
    env = worker.environment()
    template, said = worker._answer(env, None, json.dumps({"source": source}))
    if "refused" in said:
        return said
    request = {"renders": [HELLO[0] | variables]}
    return worker._answer(env, template, json.dumps(request))[1]


ATTRIBUTE, CALL = "the attribute .* is not allowed", "a call of something other than a known"
REFUSED = {
    "{{ ''.__doc__ }}": ATTRIBUTE,
    "{{ ''['__doc__'] }}": ATTRIBUTE,
    "{{ messages[0]._x }}": ATTRIBUTE,
    "{{ [''] | map(attribute='__doc__') | list }}": ATTRIBUTE,
    "{{ [''] | sort(attribute='a.__doc__') | list }}": ATTRIBUTE,
    "{{ [''] | map(attribute='up' ~ 'per') | list }}": "a computed attribute is not allowed",
    "{{ namespace.__doc__ }}": ATTRIBUTE,
    "{{ 'x'.center }}": ATTRIBUTE,
    "{{ 'x'['center'] }}": ATTRIBUTE,
    "{{ 'x'.center(3) }}": CALL,
    "{{ 'x'['upper']() }}": CALL,
    "{% set f = 'x'.format %}": ATTRIBUTE,
    "{{ '' | attr('upper') }}": "the filter 'attr' is not allowed",
    "{{ 'x' | center(3) }}": "the filter 'center' is not allowed",
    "{{ 'x' | format }}": "the filter 'format' is not allowed",
    "{{ [''] | map('attr', 'upper') | list }}": "No filter named 'attr'",
    "{{ 'x' is escaped }}": "the test 'escaped' is not allowed",
    "{{ self }}": "the name 'self' is not allowed",
    "{{ __name__ }}": "the name '__name__' is not allowed",
    "{% set range = 1 %}": "'range' may not be set",
    "{% include 'a' %}": "Include is not allowed",
    "{% import 'a' as a %}": "Import is not allowed",
    "{% extends 'a' %}": "Extends is not allowed",
    "{{ 2 ** 3 }}": "Pow is not allowed",
    "{{ '%d' % 1 }}": "the operator '%' is for numbers",
    "{{ {} * 2 }}": "the operator '\\*' is for numbers and texts",
    "{{ ('x'.upper or 1)() }}": CALL,
    "{{ cycler() }}": CALL,
    "{{ messages.append(1) }}": CALL,
    "{{ range(*[1, 2]) }}": "calls with \\* or \\*\\* are not allowed",
    "{{ dict(**{}) }}": "calls with \\* or \\*\\* are not allowed",
    "{% for m in messages recursive %}{% endfor %}": "a recursive loop is not allowed",
    "{% for i in range(1) %}{% for j in range(1) %}{% endfor %}{% endfor %}": "a loop over a range",
    "{% for i in [1] %}" * 5 + "{% endfor %}" * 5: "loops more than 4 deep are not allowed",
    "{{ [1] | tojson(indent=17) }}": "an indent of more than 16 is not allowed",
    "{{ strftime_now('%3d') }}": "a date of an unknown form",
    "{{ 1 / 0 }}": "division by zero",
    "{{ (": "unexpected 'end of template'",
}


@pytest.mark.parametrize("source", REFUSED)
def test_what_chat_templates_do_not_need_is_refused_by_name(source):
    said = answer(source)
    assert re.search(REFUSED[source], said["refused"]), said


def test_what_they_need_beside_it_is_taken():
    said = answer(
        "{% for m in messages %}{% for i in range(2) %}{{ m.content.upper() ~ i % 2 }}{% endfor %}"
        "{% endfor %}{{ [1] | tojson(indent=16) }}{{ 'ab' * 2 }}"
        "{{ [{'a': 1}] | map(attribute='a') | join }}"
    )
    assert said["texts"] == ["HI0HI1[\n                1\n]abab1"]


def test_a_refusal_is_one_line_of_a_format_error():
    with pytest.raises(
        FormatError, match="^the chat template cannot be used: the attrib.*Llama3"
    ) as e:
        rendering.render("{{ ''.__doc__ }}", HELLO)
    assert "\n" not in str(e.value)


@pytest.mark.parametrize("name", ["cycler", "joiner", "lipsum", "get_flashed_messages", "config"])
def test_names_beyond_those_of_chat_templates_are_undefined(name):
    assert answer("{{ " + name + " is defined }}") == {"texts": ["False"]}


@pytest.mark.parametrize(
    "source",
    ["{{ 'a' * 11 }}", "{{ 11 * 'a' }}", "{% set n = 11 %}{{ 'a' * n }}", "{{ [1] * 11 }}"],
)
def test_what_is_repeated_is_counted_before_it_is_made(monkeypatch, source):
    assert "texts" in answer(source)
    monkeypatch.setattr(worker, "MOST_REPEATED", 10)
    assert answer(source)["refused"] == "a text of more than 10 repeated characters"


def test_output_is_counted_beyond_the_request(monkeypatch):
    monkeypatch.setattr(worker, "MOST_OUTPUT", 10)
    assert (
        "a text of more than"
        in answer("{% for i in range(20) %}{{ 'x' * 10 }}{% endfor %}")["refused"]
    )
    long = [{"role": "user", "content": "x" * 200}]
    assert answer("{{ messages[0].content }}", messages=long) == {"texts": ["x" * 200]}


def limited(tmp_path, monkeypatch, **budgets):
    """Lets the process run with lower budgets, and its parent wait for it."""
    rendering.end()
    script = rendering.WORKER.read_text()
    for name, value in budgets.items():
        line = next(line for line in script.splitlines() if line.startswith(f"{name} = "))
        script = script.replace(line, f"{name} = {value}")
    (tmp_path / "worker.py").write_text(script)
    monkeypatch.setattr(rendering, "WORKER", tmp_path / "worker.py")
    monkeypatch.setattr(rendering, "SECONDS", 60.0)


# Four MiB of text, and a tenth of a second.
GROWS = (
    "{% set ns = namespace(a='x') %}{% for i in range(22) %}{% set ns.a = ns.a ~ ns.a %}"
    "{% endfor %}{{ ns.a | length }}"
)
COUNTS = "{% for i in range(90000) %}{% set x = i %}{% endfor %}" * 8 + "done"


def test_a_template_has_so_much_memory(tmp_path, monkeypatch):
    assert rendering.render(GROWS, HELLO) == [str(1 << 22)]
    limited(tmp_path, monkeypatch, MEMORY=1 << 20)
    with pytest.raises(FormatError, match="needs more than 1 MiB|too much memory"):
        rendering.render(GROWS, HELLO)


def test_a_template_has_so_much_time_of_the_processor(tmp_path, monkeypatch):
    assert rendering.render(COUNTS, HELLO) == ["done"]
    limited(tmp_path, monkeypatch, SECONDS=0.001)
    with pytest.raises(FormatError, match="takes more than 1 s"):
        rendering.render(COUNTS, HELLO)


@pytest.mark.parametrize(("budget", "value"), [("SECONDS", 0.0), ("MOST_ANSWER", 10)])
def test_a_process_that_does_not_answer_in_time_or_says_too_much_is_ended(
    monkeypatch, budget, value
):
    rendering.render("a", HELLO)
    child = rendering._current.process
    with monkeypatch.context() as patch:
        patch.setattr(rendering, budget, value)
        with pytest.raises(FormatError, match="takes more than 1 s or too much memory"):
            rendering.render("a", HELLO)
    assert child.returncode is not None
    assert rendering.render("a", HELLO) == ["a"]
