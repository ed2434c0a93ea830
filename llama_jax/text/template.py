"""A file's own Jinja chat template as a format.

The template never sees a message: it is rendered with a placeholder where the message's text
belongs. So the control tokens in the result are the template's own, and the text goes in
afterwards, as plain text:

    template        <|im_start|>user⏎{{ content }}<|im_end|>⏎
    rendered        <|im_start|>user⏎□<|im_end|>⏎
    ids             1, "user⏎" + text + "", 2, "⏎"       the strings by plain `encode`
"""

import dataclasses
import re
import secrets
from collections.abc import Sequence

from llama_jax.errors import FormatError, UserError
from llama_jax.text.messages import Message
from llama_jax.text.pretrained import Pretrained
from llama_jax.text.render import render

MOST_CHARACTERS = 64 << 10


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
        self, messages: Sequence[Message], tokenizer: Pretrained, generation_prompt: bool
    ) -> list[int]:
        """The ids of a conversation."""
        marks = _Marks(messages, tokenizer)
        common = {"add_generation_prompt": generation_prompt, "tools": None, "documents": None}
        common |= tokenizer.named
        contents = [[m.content for m in messages], marks.placeholders]
        real, marked = render(
            self.source,
            [
                {"messages": [_fields(m.role, c) for m, c in zip(messages, texts, strict=True)]}
                | common
                for texts in contents
            ],
        )
        parts, text = marks.fill(marked)
        if text == real:
            return tokenizer.join(parts)
        # The template looks into the messages or changes them. That is as safe if no message names
        # a control token and none has come in.
        for number, message in enumerate(messages):
            named = next((p for p in tokenizer.split(message.content) if isinstance(p, int)), None)
            if named is not None:
                token = next(t for t, i in tokenizer.control.items() if i == named)
                raise UserError(
                    f"message {number} holds the control token {token!r}, and this chat template "
                    "changes the text of messages; take it out, or try a format, such as Llama3()"
                )
        found = tokenizer.split(real)
        if _controls(found) != _controls(parts):
            raise UserError(
                "this chat template makes other control tokens of these messages than of others; "
                "try a format, such as Llama3()"
            )
        return tokenizer.join(found)


class _Marks:
    """Placeholders for the texts of messages, which no text can guess."""

    def __init__(self, messages: Sequence[Message], tokenizer: Pretrained):
        self.tokenizer = tokenizer
        nonce = secrets.randbits(64)
        self.texts: list[str] = []
        self.placeholders: list[str] = []
        # White space around a text stays outside of its mark, for many templates trim it away. It
        # can spell no control token, or else it stays inside.
        exposed = all(token.strip() for token in tokenizer.control)
        for number, message in enumerate(messages):
            inner = message.content.strip() if exposed else message.content
            before, _, after = message.content.partition(inner) if inner else (message.content,) * 3
            # Digits only, for a template may change the case of letters.
            mark = f"\ue000{nonce}.{number}\ue001"
            self.texts.append(inner)
            self.placeholders.append(f"{before}{mark}{after}" if inner else message.content)
        self.pattern = re.compile(f"\ue000{nonce}\\.([0-9]+)\ue001")

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


def _fields(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


def _controls(parts: Sequence[str | int]) -> list[int]:
    return [part for part in parts if isinstance(part, int)]
