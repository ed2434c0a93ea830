"""A file's own Jinja chat template as a format.

The template never sees a message: it is rendered with a placeholder where the message's text
belongs. So the control tokens in the result are the template's own, and the text goes in
afterwards, as plain text:

    template        <|im_start|>user⏎{{ content }}<|im_end|>⏎
    rendered        <|im_start|>user⏎□<|im_end|>⏎
    ids             1, "user⏎" + text + "", 2, "⏎"       the strings by plain `encode`
"""

import dataclasses
import json
import re
import secrets
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from llama_jax.errors import FormatError, UserError
from llama_jax.text.messages import SAME, Message, Picture
from llama_jax.text.pretrained import Pretrained
from llama_jax.text.render import render

MOST_CHARACTERS = 64 << 10
# Words of JSON schemas and of OpenAI's interface that templates compare with.
TYPES = frozenset(
    "function object string integer number boolean array null text image tool code".split()
)
WORD = re.compile(r"[\w$.-]*")


@dataclasses.dataclass(frozen=True)
class Template:
    """The chat format that a Jinja template describes.

    Raises:
      FormatError: the template is longer than 64 K characters.
    """

    source: str = dataclasses.field(repr=False)

    def __post_init__(self):
        if not isinstance(self.source, str) or len(self.source) > MOST_CHARACTERS:
            what = f"{type(self.source).__name__} {str(self.source)[:20]!r}"
            raise FormatError(
                f"the chat template is {what}..., expected a text of at most {MOST_CHARACTERS} "
                "characters; try a format, such as Llama3()"
            )

    def ids(
        self,
        messages: Sequence[Message],
        tokenizer: Pretrained,
        generation_prompt: bool,
        tools: Sequence[Mapping[str, Any]] | None = None,
    ) -> list[int]:
        """The ids of a conversation."""
        marks = _Marks(tokenizer)
        common = {"add_generation_prompt": generation_prompt, "documents": None}
        common |= tokenizer.words
        given = {"messages": [self._fields(m) for m in messages], "tools": _json(tools)}
        # A template may ask what kind of thing a schema says; of messages, it asks who speaks.
        marked_tree = {
            "messages": [
                {k: v if k == "role" else marks.tree(v) for k, v in fields.items()}
                for fields in given["messages"]
            ],
            "tools": marks.tree(given["tools"]),
        }
        real, marked = render(self.source, [given | common, marked_tree | common])
        parts, text = marks.fill(marked)
        if text == real:
            return tokenizer.join(parts)
        # The template looks into the messages or changes them. That is as safe if no message names
        # a control token and none has come in.
        for number, fields in enumerate(given["messages"]):
            _check_no_control(f"message {number} holds", fields, tokenizer)
        _check_no_control("tools hold", given["tools"], tokenizer)
        found = tokenizer.split(real)
        if _controls(found) != _controls(parts):
            raise UserError(
                "this chat template makes other control tokens of these messages than of others; "
                "try a format, such as Llama3()"
            )
        return tokenizer.join(found)

    def _fields(self, message: Message) -> dict[str, Any]:
        """A message as the template knows it."""
        content = message.content
        if not isinstance(content, str) and content is not None:
            # A template that knows no parts would write the list as Python does.
            parts = re.search(r"""\.text\b|\[['"]text['"]\]""", self.source)
            content = [_part(piece) for piece in message.pieces] if parts else message.text
        fields = {"role": message.role, "content": content, "name": message.name}
        fields |= {"tool_calls": _json(message.tool_calls), "tool_call_id": message.tool_call_id}
        if message.reasoning is not None:
            # Templates have several names for it.
            names = [n for n in (*SAME, "reasoning") if n in self.source] or ["reasoning"]
            fields |= dict.fromkeys(names, message.reasoning)
        return {k: v for k, v in fields.items() if v is not None or k == "content"}


class _Marks:
    """Placeholders for the texts of messages, which no text can guess."""

    def __init__(self, tokenizer: Pretrained):
        self.tokenizer = tokenizer
        self.nonce = secrets.randbits(64)
        self.texts: list[str] = []
        # White space around a text stays outside of its mark, for many templates trim it away. It
        # can spell no control token, or else it stays inside.
        self.exposed = all(token.strip() for token in tokenizer.control)
        self.pattern = re.compile(f"\ue000{self.nonce}\\.([0-9]+)\ue001")

    def mark(self, text: str) -> str:
        """A placeholder for a text."""
        inner = text.strip() if self.exposed else text
        if not inner:
            return text
        before, _, after = text.partition(inner)
        self.texts.append(inner)
        # Digits only, for a template may change the case of letters.
        return f"{before}\ue000{self.nonce}.{len(self.texts) - 1}\ue001{after}"

    def tree(self, value: Any) -> Any:
        """The same value with placeholders for its texts, but for words that say a type."""
        if isinstance(value, str):
            return value if value in TYPES else self.mark(value)
        if isinstance(value, list):
            return [self.tree(one) for one in value]
        if isinstance(value, dict):
            return {self.key(key): self.tree(one) for key, one in value.items()}
        return value

    def key(self, key: str) -> str:
        """The name of a field: templates ask for those that are words, and others may be text."""
        return key if WORD.fullmatch(key) else self.mark(key)

    def fill(self, rendered: str) -> tuple[list[str | int], str]:
        """The parts of a rendered text with messages in their places, and it as one."""
        parts: list[str | int] = []
        whole = []
        for n, piece in enumerate(self.pattern.split(rendered)):
            if n % 2:
                piece = self.texts[int(piece)]
                parts.append(piece)
            else:
                parts += self.tokenizer.split(piece)
            whole.append(piece)
        return parts, "".join(whole)


def _part(piece: str | Picture) -> dict[str, str]:
    """A part of a content as templates know it: of a picture only that there is one."""
    if isinstance(piece, Picture):
        return {"type": "image"}
    return {"type": "text", "text": piece}


def _json(value: Any) -> Any:
    """The same value of plain lists and dicts.

    Raises:
      UserError: it is none of JSON's.
    """
    try:
        return json.loads(json.dumps(value))
    except (TypeError, ValueError, RecursionError) as error:
        raise UserError(
            f"tools and calls of tools have to be values of JSON ({str(error)[:80]})"
        ) from None


def _check_no_control(what: str, value: Any, tokenizer: Pretrained) -> None:
    for text in _texts(value):
        named = next((p for p in tokenizer.split(text) if isinstance(p, int)), None)
        if named is not None:
            token = next(t for t, i in tokenizer.control.items() if i == named)
            raise UserError(
                f"{what} the control token {token!r}, and this chat template changes the text of "
                "messages; take it out, or try a format, such as Llama3()"
            )


def _texts(value: Any) -> Iterator[str]:
    """All texts in a value, the names of its fields too."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, list):
        for one in value:
            yield from _texts(one)
    elif isinstance(value, dict):
        for key, one in value.items():
            yield from _texts(key)
            yield from _texts(one)


def _controls(parts: Sequence[str | int]) -> list[int]:
    return [part for part in parts if isinstance(part, int)]
