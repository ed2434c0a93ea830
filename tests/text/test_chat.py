import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llama_jax.errors import UserError
from llama_jax.text import Message, chat_ids
from llama_jax.text.chat import Format, Llama2, Llama3, Llama4, format_of
from llama_jax.text.template import Template
from tests.text.small import opened, tiktoken_file

CHAT = [
    Message("system", "Be brief."),
    Message("user", " Who are  you?\n"),
    Message("assistant", "A model.\n"),
    Message("user", "Good."),
]


@pytest.fixture(scope="module")
def llama4(tmp_path_factory):
    from llama_jax.text import open_tokenizer

    folder = tmp_path_factory.mktemp("llama4")
    (folder / "tokenizer.model").write_bytes(tiktoken_file(200_000))
    return open_tokenizer(folder)


def controls(ids, tokenizer):
    names = {i: text for text, i in tokenizer.control.items()}
    return [names[i] for i in ids if i in names]


def test_llama_3_writes_headers_and_ends_of_turns():
    tokenizer = opened("tiktoken")
    ids = chat_ids(CHAT[:2], tokenizer)
    begin, start, stop, end = (
        tokenizer.control[f"<|{name}|>"]
        for name in ("begin_of_text", "start_header_id", "end_header_id", "eot_id")
    )
    text = tokenizer.encode
    assert ids == [
        begin,
        *(start, *text("system"), stop, *text("\n\n"), *text("Be brief."), end),
        *(start, *text("user"), stop, *text("\n\n"), *text(" Who are  you?\n"), end),
        *(start, *text("assistant"), stop, *text("\n\n")),
    ]
    closed = chat_ids(CHAT[:2], tokenizer, generation_prompt=False)
    assert closed == ids[: len(closed)] and closed[-1] == end


def test_llama_4_ends_what_a_tool_gave_with_a_token_of_its_own(llama4):
    messages = [*CHAT[1:3], Message("tool", "42")]
    assert controls(chat_ids(messages, llama4), llama4) == [
        "<|begin_of_text|>",
        *("<|header_start|>", "<|header_end|>", "<|eot|>") * 2,
        *("<|header_start|>", "<|header_end|>", "<|eom|>"),
        *("<|header_start|>", "<|header_end|>"),
    ]
    assert "ipython" in llama4.decode(chat_ids(messages, llama4))
    end = opened("tiktoken").control["<|eot_id|>"]
    assert chat_ids(messages, opened("tiktoken")).count(end) == 3


def test_llama_2_writes_instructions_between_bos_and_eos():
    tokenizer = opened("sentencepiece")
    first = "[INST] <<SYS>>\nBe brief.\n<</SYS>>\n\n Who are  you? [/INST] A model. "
    bos, eos = tokenizer.control["<s>"], tokenizer.control["</s>"]
    assert chat_ids(CHAT, tokenizer, "llama2") == [
        *(bos, *tokenizer.encode(first), eos),
        *(bos, *tokenizer.encode("[INST] Good. [/INST]")),
    ]
    assert chat_ids(CHAT[:3], tokenizer, Llama2(), generation_prompt=False) == [
        bos,
        *tokenizer.encode(first),
        eos,
    ]


@pytest.mark.parametrize("tag", ["[INST]", "[/INST]", "<<SYS>>", "<</SYS>>"])
def test_llama_2_refuses_a_text_that_would_end_its_own_turn(tag):
    with pytest.raises(UserError, match="message 1 holds .*which separates turns"):
        messages = [CHAT[0], Message("user", f"a {tag} b")]
        chat_ids(messages, opened("sentencepiece"), Llama2())


def test_the_format_follows_from_the_tokenizer(llama4):
    assert format_of(opened("tiktoken")) == format_of(opened("bpe")) == Llama3()
    assert format_of(llama4) == Llama4()
    assert format_of(opened("sentencepiece"), "llama2") == Llama2()
    assert format_of(opened("smollm2")) == Template(opened("smollm2").template)
    for format in (Llama2(), Llama3(), Llama4(), Template("")):
        assert isinstance(format, Format) and hash(format) == hash(format)


def test_a_format_whose_control_tokens_are_missing_is_refused():
    with pytest.raises(UserError, match=r"no control token '<\|begin_of_text\|>'"):
        chat_ids(CHAT, opened("smollm2"), Llama3())
    with pytest.raises(UserError, match="no control token '<s>'"):
        chat_ids(CHAT, opened("tiktoken"), Llama2())


def test_a_tokenizer_without_any_format_is_refused(tmp_path):
    import json

    from llama_jax.text import open_tokenizer
    from tests.text.small import bpe_json

    content = json.loads(bpe_json()) | {"added_tokens": [], "post_processor": None}
    (tmp_path / "tokenizer.json").write_text(json.dumps(content))
    for tokenizer in (open_tokenizer(tmp_path), opened("sentencepiece")):
        with pytest.raises(UserError, match="no chat template.*--chat-format NAME"):
            chat_ids(CHAT, tokenizer)
        with pytest.raises(UserError, match="'lama2' is unknown.*Did you mean 'llama2'"):
            chat_ids(CHAT, tokenizer, "lama2")


@pytest.mark.parametrize(
    ("roles", "why"),
    [
        ("", "needs a message of the role 'user'"),
        ("s", "needs a message of the role 'user'"),
        ("a", "message 0 is of the role 'assistant' at the beginning"),
        ("uu", "message 1 is of the role 'user' after 'user'"),
        ("uaa", "message 2 is of the role 'assistant' after 'assistant'"),
        ("us", "message 1 is of the role 'system' after 'user'"),
        ("ssu", "message 1 is of the role 'system' after 'system'"),
        ("ut", "message 1 is of the role 'tool' after 'user'"),
        ("ua", "nothing to answer"),
    ],
)
def test_roles_out_of_turn_are_refused(roles, why):
    names = {"s": "system", "u": "user", "a": "assistant", "t": "tool"}
    messages = [Message(names[role], "x") for role in roles]
    with pytest.raises(UserError, match=why):
        chat_ids(messages, opened("sentencepiece"), Llama2(), roles in ("ua", "uu"))


@pytest.mark.parametrize("roles", ["uu", "suu", "uaa", "ut"])
def test_formats_that_mark_every_turn_write_them_in_any_order(roles):
    names = {"s": "system", "u": "user", "a": "assistant", "t": "tool"}
    messages = [Message(names[role], "x") for role in roles]
    ids = chat_ids(messages, opened("tiktoken"), generation_prompt=False)
    assert ids.count(opened("tiktoken").control["<|eot_id|>"]) == len(roles)


@pytest.mark.parametrize("roles", ["", "s", "ua"])
def test_a_conversation_with_nothing_to_answer_is_refused(roles):
    names = {"s": "system", "u": "user", "a": "assistant"}
    with pytest.raises(UserError, match="needs a message of the role 'user'|nothing to answer"):
        chat_ids([Message(names[role], "x") for role in roles], opened("tiktoken"))


def test_a_message_of_an_unknown_role_or_without_text_is_refused():
    with pytest.raises(UserError, match="role='asistant' is unknown.*Did you mean 'assistant'"):
        Message("asistant", "x")
    with pytest.raises(UserError, match="is NoneType; expected str"):
        Message("user", None)
    with pytest.raises(UserError, match="no role 'tool'"):
        messages = [*CHAT[1:3], Message("tool", "x")]
        chat_ids(messages, opened("sentencepiece"), Llama2())


@pytest.mark.parametrize("role", ["system", "user", "assistant", "tool"])
@pytest.mark.parametrize("kind", ["bpe", "tiktoken", "sentencepiece", "smollm2"])
def test_no_control_token_comes_in_by_the_text_of_a_message(kind, role):
    tokenizer = opened(kind)

    def conversation(text):
        said = {"system": "s", "user": "u", "assistant": "a", "tool": "t"} | {role: text}
        roles = ["system", "user", "assistant", "user"]
        roles[3:] = ["tool"] if kind in ("bpe", "tiktoken") else ["user"]
        format = "llama2" if kind == "sentencepiece" else None
        return chat_ids([Message(r, said[r]) for r in roles], tokenizer, format)

    usual = controls(conversation("text"), tokenizer)
    for name in tokenizer.control:
        text = f"x{name}y"
        ids = conversation(text)
        assert controls(ids, tokenizer) == usual
        assert role == "tool" or text in tokenizer.decode(ids)


@given(st.text(st.characters(exclude_categories=["Cs", "Cc", "Cn", "Co"]), max_size=40))
@settings(max_examples=100, deadline=None)
def test_any_text_is_found_in_its_conversation_and_adds_no_control_token(text):
    for kind in ("tiktoken", "smollm2"):
        tokenizer = opened(kind)
        ids = chat_ids([Message("user", text)], tokenizer)
        assert text in tokenizer.decode(ids)
        assert controls(ids, tokenizer) == controls(
            chat_ids([Message("user", "x")], tokenizer), tokenizer
        )
