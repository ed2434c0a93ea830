"""Messages as OpenAI's interface has them, and what a template makes of them."""

import dataclasses

import pytest

from llama_jax.errors import UserError
from llama_jax.text import Message, chat_ids
from llama_jax.text.any_tokenizer import Opened
from llama_jax.text.chat import Llama2, Llama3, format_of
from llama_jax.text.messages import message, messages_of, pictures
from llama_jax.text.template import Template
from tests.text.small import opened

CALL = {
    "type": "function",
    "id": "1",
    "function": {"name": "sum", "arguments": {"of": "<|eot_id|>"}},
}


def said(source, messages, **options):
    """The text of a conversation, with control tokens by their names."""
    tokenizer = opened("bpe")
    names = {i: text for text, i in tokenizer.control.items()}
    ids = chat_ids(messages_of(messages), tokenizer, Template(source), **options)
    return "".join(names.get(i) or tokenizer.decode([i]) for i in ids)


def controls(source, messages, **options):
    tokenizer = opened("bpe")
    ids = chat_ids(messages_of(messages), tokenizer, Template(source), **options)
    return [i for i in ids if i in tokenizer.control.values()]


def test_fields_that_programs_send_as_null_or_empty_are_as_if_not_there():
    given = {"role": "user", "content": "hi", "refusal": None, "annotations": [], "audio": None}
    assert message(given) == Message("user", "hi")
    assert messages_of("hi") == messages_of(given) == messages_of([given]) == [message(given)]


@pytest.mark.parametrize(
    ("given", "why"),
    [
        ({"role": "user", "content": "a", "refusal": "no"}, "the field 'refusal', which has no"),
        ({"role": "user", "content": "a", "nmae": "b"}, "'nmae'.*Did you mean 'name'"),
        ({"content": "a"}, "has no role"),
        ({"role": None, "content": "a"}, "role='None' is unknown"),
        ({"role": "user"}, "content of a message is NoneType"),
        ({"role": "user", "content": 3}, "content of a message is int"),
        (
            {"role": "user", "content": [{"type": "image_url"}]},
            "type 'image_url'; expected parts of the types 'text' and 'image'",
        ),
        ({"role": "user", "content": [{"type": "text"}]}, "has no text"),
        ({"role": "user", "content": ["a"]}, "no object with a type"),
        ({"role": "user", "content": "a", "name": 3}, "name of a message is int"),
        ({"role": "assistant", "content": "a", "tool_calls": "x"}, "no list of objects"),
        ("hi", "a message is str"),
    ],
)
def test_a_message_that_is_none_is_refused_by_name(given, why):
    with pytest.raises(UserError, match=why):
        message(given)
    with pytest.raises(UserError, match="expected a text, a message, or a list"):
        messages_of(3)


def test_a_name_is_for_templates_that_write_it():
    chat = [{"role": "user", "content": "hi", "name": "Bob"}]
    assert said("{% for m in messages %}{{ m.content }}{% endfor %}", chat) == "hi"
    assert (
        said("{% for m in messages %}{{ m.name }}: {{ m.content }}{% endfor %}", chat) == "Bob: hi"
    )


@pytest.mark.parametrize("field", ["reasoning", "reasoning_content", "thinking"])
@pytest.mark.parametrize("written", ["reasoning", "reasoning_content", "thinking"])
def test_reasoning_reaches_a_template_under_the_name_it_has_there(field, written):
    chat = [{"role": "user", "content": "?"}, {"role": "assistant", "content": "!", field: "hm"}]
    source = "{% for m in messages %}{{ m." + written + " or '' }}{{ m.content }}{% endfor %}"
    assert said(source, chat, generation_prompt=False) == "?hm!"


def test_parts_are_parts_for_a_template_that_knows_them_and_else_one_text():
    chat = {
        "role": "user",
        "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}],
    }
    assert said("{{ messages[0].content }}", chat) == "ab"
    each = "{% for p in messages[0].content %}{% if p.type == 'text' %}[{{ p.text }}]{% endif %}"
    assert said(each + "{% endfor %}", chat) == "[a][b]"


def test_calls_and_tools_are_text_whatever_they_name():
    chat = [
        {"role": "user", "content": "?"},
        {"role": "assistant", "content": None, "tool_calls": [CALL]},
        {"role": "tool", "content": "42", "tool_call_id": "<|eom_id|>"},
    ]
    source = (
        "{% for t in tools %}{{ t.function.name }}{% endfor %}{% for m in messages %}"
        "{% for c in m.tool_calls or [] %}{% if c.type == 'function' %}{{ c.function.name }}"
        "{{ c.function.arguments.of }}{% endif %}{% endfor %}{{ m.tool_call_id }}<|eot_id|>"
        "{% endfor %}"
    )
    tools = [{"type": "function", "function": {"name": "<|begin_of_text|>"}}]
    text = said(source, chat, tools=tools)
    assert text == "<|begin_of_text|><|eot_id|>sum<|eot_id|><|eot_id|><|eom_id|><|eot_id|>"
    assert len(controls(source, chat, tools=tools)) == 3
    as_json = "{{ tools | tojson }}{{ messages[1].tool_calls | tojson }}<|eot_id|>"
    assert len(controls(as_json, chat, tools=tools)) == 1


def test_control_tokens_in_what_a_template_changes_are_refused():
    tools = [{"type": "function", "function": {"name": "<|eot_id|>"}}]
    with pytest.raises(UserError, match=r"tools hold the control token '<\|eot_id\|>'"):
        said("{{ tools[0].function.name | upper }}", "hi", tools=tools)
    odd = [{"type": "function", "<|eot_id|>": 1}]
    with pytest.raises(UserError, match=r"tools hold the control token|other control tokens"):
        said("{{ tools | tojson | upper }}", "hi", tools=odd)
    with pytest.raises(UserError, match="values of JSON"):
        said("", "hi", tools=[{"f": print}])
    with pytest.raises(UserError, match="expected a list of JSON schemas"):
        said("", "hi", tools="weather")


def test_the_names_of_fields_cannot_spell_a_control_token():
    odd = [{"type": "function", "<|eot_id|>": 1}]
    ids = controls("{{ tools | tojson }}", "hi", tools=odd)
    assert ids == []


@pytest.mark.parametrize("format", [Llama2(), Llama3()])
def test_formats_of_texts_alone_refuse_more(format):
    kind = "sentencepiece" if isinstance(format, Llama2) else "bpe"
    call = [Message("user", "?"), Message("assistant", None, tool_calls=[CALL])]
    with pytest.raises(UserError, match="field 'tool_calls', which .* does not write"):
        chat_ids(call, opened(kind), format, generation_prompt=False)
    with pytest.raises(UserError, match="writes no tools"):
        chat_ids(call[:1], opened(kind), format, tools=[{}])
    parts = [Message("user", [{"type": "text", "text": "hi"}])]
    assert chat_ids(parts, opened(kind), format) == chat_ids(
        messages_of("hi"), opened(kind), format
    )


def with_templates(**templates):
    before = opened("bpe")
    assert isinstance(before, Opened)
    default = templates.pop("default", None)
    special = dataclasses.replace(before.special, template=default, templates=templates)
    return dataclasses.replace(before, special=special)


def test_a_template_is_chosen_by_its_name_and_tools_have_one_of_their_own():
    both = with_templates(default="{{ 1 }}", tool_use="{{ 2 }}")
    assert format_of(both) == Template("{{ 1 }}")
    assert format_of(both, tools=True) == format_of(both, "tool_use") == Template("{{ 2 }}")
    assert format_of(both, "llama3") == Llama3()
    with pytest.raises(UserError, match="'tooluse' is unknown.*Did you mean 'tool_use'"):
        format_of(both, "tooluse")
    with pytest.raises(UserError, match="none is the default; choose one of a, b"):
        format_of(with_templates(a="1", b="2"))


def test_several_messages_of_the_user_stand_in_a_row_where_the_template_allows_it():
    chat = [Message("user", "a"), Message("user", "b")]
    source = "{% for m in messages %}{{ m.content }}<|eot_id|>{% endfor %}"
    assert said(source, chat) == "a<|eot_id|>b<|eot_id|>"
    refuses = "{{ raise_exception('roles must alternate') }}"
    with pytest.raises(UserError, match="roles must alternate"):
        said(refuses, chat)


SEEN = {
    "role": "user",
    "content": [
        {"type": "image", "path": "a.png"},
        {"type": "text", "text": "What is <|eot_id|> in "},
        {"type": "image"},
    ],
}
PARTS = (
    "{% for m in messages %}{% for p in m['content'] %}{% if p['type'] == 'image' %}<|eom_id|>"
    "{% else %}{{ p['text'] }}{% endif %}{% endfor %}{% endfor %}"
)


def test_a_template_is_told_that_there_is_a_picture_and_writes_its_token():
    assert said(PARTS, SEEN) == "<|eom_id|>What is <|eot_id|> in <|eom_id|>"
    assert len(controls(PARTS, SEEN)) == 2


def test_pictures_come_in_their_order_from_the_messages_and_from_beside_them():
    assert pictures(messages_of([SEEN, SEEN]), [1, 2]) == ["a.png", 1, "a.png", 2]
    with pytest.raises(UserError, match="have 1 parts .* and 0 pictures came beside"):
        pictures(messages_of(SEEN))


def test_a_format_that_writes_texts_alone_refuses_a_picture():
    with pytest.raises(UserError, match="holds a picture, and this chat format writes texts alone"):
        said("{% for m in messages %}{{ m['content'] }}{% endfor %}", SEEN)


def test_llama_3_s_format_writes_the_token_of_a_picture_where_there_is_one():
    with pytest.raises(UserError, match=r"no control token '<\|image\|>'"):
        chat_ids(messages_of(SEEN), opened("bpe"), Llama3())


def test_a_part_with_two_pictures_is_refused():
    part = {"type": "image", "image": "a.png", "path": "b.png"}
    with pytest.raises(UserError, match="a part of the type 'image' has the fields"):
        message({"role": "user", "content": [part]})
