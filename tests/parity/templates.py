"""Sixty chat templates: twelve published ways to mark turns, each written in five ways.

The marks are facts of published formats; the templates around them are ours, in the constructs that
published ones use: loops, slices, namespaces, macros, filters, tests, conditions within strings.
"""

from typing import NamedTuple


class Marks(NamedTuple):
    """What stands around a turn; `{role}` is its role, in front of all stands `begin`."""

    user: str
    assistant: str
    system: str
    end: str = ""
    begin: str = ""


def same(head: str, end: str, begin: str = "") -> Marks:
    """Marks that differ in the role's name alone."""
    return Marks(*(head.format(role=r) for r in ("user", "assistant", "system")), end, begin)


BOS = "{{ bos_token }}"
MARKS = {
    "chatml": same("<|im_start|>{role}\n", "<|im_end|>\n"),
    "llama 3": same("<|start_header_id|>{role}<|end_header_id|>\n\n", "<|eot_id|>", BOS),
    "llama 4": same("<|header_start|>{role}<|header_end|>\n\n", "<|eot|>", BOS),
    "zephyr": same("<|{role}|>\n", "{{ eos_token }}\n"),
    "phi": same("<|{role}|>\n", "<|end|>\n"),
    "glm": same("<|{role}|>\n", "", "[gMASK]<sop>"),
    "granite": same("<|start_of_role|>{role}<|end_of_role|>", "<|end_of_text|>\n"),
    "gemma": Marks(
        "<start_of_turn>user\n", "<start_of_turn>model\n", "<start_of_turn>user\n",
        "<end_of_turn>\n", BOS,
    ),
    "vicuna": Marks("USER: ", "ASSISTANT: ", "", "\n", BOS),
    "alpaca": Marks("### Instruction:\n", "### Response:\n", "", "\n\n"),
    "command": Marks(
        "<|START_OF_TURN_TOKEN|><|USER_TOKEN|>", "<|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|>",
        "<|START_OF_TURN_TOKEN|><|SYSTEM_TOKEN|>", "<|END_OF_TURN_TOKEN|>", BOS,
    ),
    "mistral": Marks("[INST] ", "", "[SYSTEM_PROMPT] ", " [/INST]{{ eos_token }}", BOS),
}  # fmt: skip


def one_by_one(m: Marks) -> str:
    """A condition for each role within one loop."""
    return (
        f"{m.begin}{{% for message in messages %}}"
        f"{{% if message['role'] == 'user' %}}{m.user}"
        f"{{% elif message['role'] == 'system' %}}{m.system}"
        f"{{% elif message['role'] == 'assistant' %}}{m.assistant}"
        "{% else %}{{ raise_exception('no role ' + message['role']) }}{% endif %}"
        f"{{{{ message['content'] }}}}{m.end}{{% endfor %}}"
        f"{{% if add_generation_prompt %}}{m.assistant}{{% endif %}}"
    )


def system_first(m: Marks) -> str:
    """The system's turn is taken out, and goes into the first turn of the user."""
    return (
        "{%- if messages[0]['role'] == 'system' -%}{%- set system = messages[0].content | trim "
        "-%}{%- set rest = messages[1:] -%}{%- else -%}{%- set system = '' -%}"
        "{%- set rest = messages -%}{%- endif -%}"
        f"{m.begin}"
        "{%- for m in rest -%}{%- if m.role not in ['user', 'assistant'] -%}"
        "{{ raise_exception('a second turn of the system') }}{%- endif -%}"
        f"{{{{ '{_quoted(m.user)}' if m.role == 'user' else '{_quoted(m.assistant)}' }}}}"
        "{%- if loop.first and system -%}{{ system + '\\n\\n' }}{%- endif -%}"
        f"{{{{ m.content | trim }}}}{m.end}{{%- endfor -%}}"
        f"{{%- if add_generation_prompt %}}{m.assistant}{{%- endif -%}}"
    )


def counted(m: Marks) -> str:
    """A namespace counts turns and remembers the last role; long texts are cut with a slice."""
    return (
        "{% set ns = namespace(count=0, last='') %}"
        f"{m.begin}{{% for m in messages if m.content is defined and m.content is not none %}}"
        "{% set ns.count = ns.count + 1 %}"
        f"{{% set head = {{'user': '{_quoted(m.user)}', 'assistant': '{_quoted(m.assistant)}'}} %}}"
        f"{{{{ head.get(m.role, '{_quoted(m.system)}') if m.role != ns.last else '' }}}}"
        f"{{{{ ns.count }}}}/{{{{ messages | length }}}} {{{{ m.content[:40] }}}}{m.end}"
        "{% set ns.last = m.role %}{% endfor %}"
        f"{{% if add_generation_prompt and ns.last != 'assistant' %}}{m.assistant}{{% endif %}}"
    )


def by_macro(m: Marks) -> str:
    """A macro writes a turn; content may come in parts; answers lose what was thought."""
    return (
        "{% macro said(content) %}{% if content is string %}{{ content }}{% else %}"
        "{% for part in content %}{% if part.type == 'text' %}{{ part.text }}{% endif %}"
        "{% endfor %}{% endif %}{% endmacro %}"
        f"{m.begin}{{% for m in messages %}}{{% set text = said(m.content) %}}"
        "{% if m.role == 'assistant' and '</think>' in text %}"
        "{% set text = text.split('</think>')[-1].lstrip('\\n') %}{% endif %}"
        f"{{% if m.role == 'user' %}}{m.user}{{% elif m.role == 'assistant' %}}{m.assistant}"
        f"{{% else %}}{m.system}{{% endif %}}{{{{ text }}}}"
        f"{{% if not loop.last or m.role != 'assistant' %}}{m.end}{{% endif %}}{{% endfor %}}"
        f"{{% if add_generation_prompt %}}{m.assistant}{{% endif %}}"
    )


def with_tools(m: Marks) -> str:
    """Tools in front, calls as JSON, names in capitals, several filters in a row."""
    return (
        f"{m.begin}{{% if tools %}}{m.system}{{{{ tools | map(attribute='function') | "
        f"map(attribute='name') | join(', ') }}}}: {{{{ tools | tojson }}}}{m.end}{{% endif %}}"
        f"{{% for m in messages %}}{{{{ '{_quoted(m.user)}' if m.role == 'user' else "
        f"'{_quoted(m.assistant)}' }}}}"
        "{{ (m.name | default('somebody', true) | upper) ~ ': ' }}"
        "{% if m.content %}{{ m.content | replace('\\n\\n', '\\n') }}{% endif %}"
        "{% for call in m.tool_calls or [] %}<tool_call>{{ call.function.name }}"
        "{% for k, v in call.function.arguments.items() %} {{ k }}={{ v | tojson }}{% endfor %}"
        f"</tool_call>{{% endfor %}}{m.end}{{% endfor %}}"
        f"{{% if add_generation_prompt %}}{m.assistant}{{% endif %}}"
    )


def _quoted(mark: str) -> str:
    """A mark within a string of Jinja; what it prints goes out and in again."""
    text = mark.replace("\n", "\\n")
    return text.replace("{{ eos_token }}", "' + eos_token + '").replace(BOS, "' + bos_token + '")


WAYS = (one_by_one, system_first, counted, by_macro, with_tools)
TEMPLATES = {f"{name}, {way.__name__}": way(marks) for name, marks in MARKS.items() for way in WAYS}
