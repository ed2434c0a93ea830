"""Generated texts through tokenizers of every kind, as text and as chat: transformers' ids."""

import random

import pytest

transformers = pytest.importorskip("transformers")

from llama_jax.errors import FormatError  # noqa: E402
from llama_jax.text import chat_ids, open_tokenizer  # noqa: E402
from llama_jax.text.export import files  # noqa: E402
from llama_jax.text.gguf import from_fields, to_fields  # noqa: E402
from llama_jax.text.messages import messages_of  # noqa: E402
from llama_jax.text.template import Template  # noqa: E402
from tests.parity.kinds import KINDS, SPECIAL, TEXT  # noqa: E402
from tests.parity.templates import TEMPLATES as PUBLISHED  # noqa: E402

TEXTS = 120  # of each kind
ADDED = [token.content for token in TEXT]
WORDS = [
    *("the", "quick", " fox", "Hello", "world", "don't", "1234567", "3.14", "x", "return", "def"),
    *("über", "Ça", "e\u0301", "ﬁ", "Ａ", "²", "你好", "世界", "かな", "한국어", "Привет", "سلام"),
    *(
        "हिन्दी",
        "ไทย",
        "🙂",
        "🙂\u200d🙃",
        "👍🏽",
        "!",
        "...",
        "—",
        "«»",
        "$",
        "=>",
        "/*",
        "\\n",
        "▁",
    ),
    *(" ", "  ", "   ", "     ", "\t", "\n", "\n\n", "\r\n", "\r", "\u00a0", "\u3000", "\u2028"),
    *("\x00", "\x01", "\x07", "\x1b", "\x7f", "\x85", "\u200b", "\ufeff", "\ufffd", "\ue000"),
    *("\u0378", "\U000e0041", "\U0010ffff", "<", ">", "<0x41>", "<th", "ink>", "a", "A", "İ", "ß"),
]


def texts(seed, control=()):
    """Runs, spaces, scripts, added tokens and control characters in any order."""
    draw = random.Random(seed)
    pool = [*WORDS, *ADDED, *control]
    for number in range(TEXTS):
        yield "".join(draw.choices(pool, k=number % 13))
    yield from (" ", "  lead", " lead", "trail ", "▁", "▁▁a", "word", "words word", *ADDED)


@pytest.fixture(scope="module", params=KINDS)
def pair(request, tmp_path_factory):
    """transformers' tokenizer and ours, of one folder."""
    folder = KINDS[request.param](tmp_path_factory.mktemp("kind") / "it")
    return transformers.AutoTokenizer.from_pretrained(folder), open_tokenizer(folder)


@pytest.fixture(scope="module", params=["bytes of Qwen 2", "legacy", "unigram"])
def some(request, tmp_path_factory):
    """The same of one of each model."""
    folder = KINDS[request.param](tmp_path_factory.mktemp("kind") / "it")
    return transformers.AutoTokenizer.from_pretrained(folder), open_tokenizer(folder)


def around(tokenizer, text):
    before, after = ([] if i is None else [i] for i in (tokenizer.bos, tokenizer.closes))
    return [*before, *tokenizer.encode(text), *after]


def test_texts_have_the_ids_of_transformers_and_come_back_as_there(pair):
    theirs, ours = pair
    assert len(theirs) == ours.vocab and set(ADDED) == set(ours.texts)
    for text in texts(0):
        ids = theirs(text)["input_ids"]
        assert around(ours, text) == ids, repr(text)
        said = theirs.decode(ids, skip_special_tokens=True)
        assert ours.decode(ids) == said, repr(text)


def test_control_tokens_of_templates_are_found_where_transformers_finds_them(pair):
    theirs, ours = pair
    for text in texts(1, SPECIAL[1:]):
        assert ours.parse(text) == theirs(text, add_special_tokens=False)["input_ids"], repr(text)


def test_no_text_gives_a_control_token(pair):
    _, ours = pair
    hidden = {i for text, i in ours.control.items() if text != "<unk>"}
    for text in texts(2, SPECIAL):
        assert hidden.isdisjoint(ours.encode(text)), repr(text)


TEMPLATES = {
    "chatml": "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}",
    "trims": "{{ bos_token }}{% for m in messages %}{{ m['role'] | upper }}: {{ m.content | trim }}"
    "{{ eos_token }}{% endfor %}",
    "instructions": "{% for m in messages %}{% if m.role == 'user' %}{{ bos_token + '[INST] ' + "
    "m.content + ' [/INST]' }}{% else %}{{ ' ' + m.content + eos_token }}{% endif %}{% endfor %}",
    "names": "{% for m in messages %}{{ m.name or 'nobody' }}> {{ m.content }}{% if m.tool_calls %}"
    "{% for c in m.tool_calls %}<|im_start|>{{ c.function.name }}({{ c.function.arguments | tojson "
    "}})<|im_end|>{% endfor %}{% endif %}\n{% endfor %}",
    "thinks": "{% for m in messages %}{{ m.role }}{% if m.reasoning_content %}<think>"
    "{{ m.reasoning_content }}</think>{% endif %}{{ m.content }}<|im_end|>{% endfor %}",
    "tools": "{% if tools %}{% for t in tools %}{{ t | tojson }}{% endfor %}{% endif %}"
    "{% for m in messages %}<|im_start|>{{ m.content }}{% endfor %}",
    "parts": "{% for m in messages %}{% if m.content is string %}{{ m.content }}{% else %}"
    "{% for p in m.content %}{% if p.type == 'text' %}{{ p.text }}{% endif %}{% endfor %}"
    "{% endif %}<|im_end|>{% endfor %}",
}
TOOL = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}


@pytest.mark.parametrize("template", TEMPLATES)
def test_chats_have_the_ids_of_transformers(pair, template):
    theirs, ours = pair
    source = TEMPLATES[template]
    said = [text for text in texts(3) if text.strip()][5:17]
    for first, second in zip(said[::2], said[1::2], strict=True):
        call = {"type": "function", "function": {"name": "weather", "arguments": {"city": "Rome"}}}
        chat = [
            {"role": "user", "content": first, "name": "Bob"},
            {"role": "user", "content": [{"type": "text", "text": second}]}
            if template == "parts"
            else {"role": "user", "content": second},
            {"role": "assistant", "content": first, "reasoning_content": second,
             "tool_calls": [call]},
            {"role": "user", "content": second},
        ]  # fmt: skip
        tools = [TOOL] if template == "tools" else None
        expected = theirs.apply_chat_template(
            chat, chat_template=source, tools=tools, add_generation_prompt=True, return_dict=False
        )
        found = chat_ids(messages_of(chat), ours, Template(source), tools=tools)
        assert found == expected, (first, second)


@pytest.mark.parametrize("template", PUBLISHED)
def test_chats_in_the_forms_of_published_templates_have_the_ids_of_transformers(some, template):
    theirs, ours = some
    source = PUBLISHED[template]
    said = [text for text in texts(5) if text.strip()][5:17]
    for ask, answer, thanks in zip(said[::3], said[1::3], said[2::3], strict=True):
        chat = [
            {"role": "system", "content": thanks},
            {"role": "user", "content": ask},
            {"role": "assistant", "content": f"<think>{ask}</think>\n\n{answer}"},
            {"role": "user", "content": thanks, "name": "Bob"},
        ]
        tools = [TOOL] if template.endswith("with_tools") else None
        if tools:
            call = {"name": "weather", "arguments": {"city": answer, "days": 2}}
            chat[2] |= {"tool_calls": [{"type": "function", "function": call}]}
        for prompt in (True, False):
            expected = theirs.apply_chat_template(
                chat,
                chat_template=source,
                tools=tools,
                add_generation_prompt=prompt,
                return_dict=False,
            )
            found = chat_ids(messages_of(chat), ours, Template(source), prompt, tools=tools)
            assert found == expected, (ask, answer)


def test_tokenizers_go_through_their_own_files_and_gguf_and_back(pair, tmp_path):
    theirs, ours = pair
    for name, data in files(ours).items():
        (tmp_path / name).write_bytes(data)
    again = [open_tokenizer(tmp_path)]
    try:
        again.append(from_fields(to_fields(ours)))
    except FormatError as error:
        assert "GGUF" in str(error)
    for found in again:
        assert found.control == ours.control and found.texts == ours.texts
        assert (found.vocab, found.bos, found.closes, found.ends) == (
            ours.vocab,
            ours.bos,
            ours.closes,
            ours.ends,
        )
        for text in texts(4):
            assert found.encode(text) == ours.encode(text), repr(text)
            assert found.decode(found.encode(text)) == ours.decode(ours.encode(text))
    assert len(theirs) == len(transformers.AutoTokenizer.from_pretrained(tmp_path))
