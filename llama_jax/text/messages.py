"""The turns of a conversation, whatever format they are written in."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from llama_jax.errors import UserError, nearest
from llama_jax.messages import short

ROLES = ("system", "user", "assistant", "tool")
# Fields of OpenAI's that are the same as one of ours.
SAME = {"reasoning_content": "reasoning", "thinking": "reasoning"}
SAME_ROLES = {"developer": "system", "ipython": "tool"}


PICTURES = ("image", "path")  # fields of a part that may hold a picture


@dataclasses.dataclass(frozen=True)
class Picture:
    """A picture among the parts of a message.

    Attributes:
      data: a path, bytes, an array or a picture of Pillow; None if it comes beside the messages.
    """

    data: Any = None


@dataclasses.dataclass(frozen=True)
class Message:
    """One turn of a conversation.

    Attributes:
      role: "system", "user", "assistant", or "tool" for what a tool gave.
      content: plain text; names of control tokens in it are text too. Or parts, such as
        `{"type": "text", "text": "..."}` and `{"type": "image", "image": picture or path}`; or None
        beside calls of tools.
      name: who speaks, or which tool; for templates that write it.
      tool_calls: calls of the assistant, `{"type": "function", "function": {"name": ...,
        "arguments": {...}}}`; for templates that write them.
      tool_call_id: the call that a tool answers; likewise.
      reasoning: what the assistant thought; likewise.
    """

    role: str
    content: str | Sequence[Mapping[str, Any]] | None
    name: str | None = None
    tool_calls: Sequence[Mapping[str, Any]] | None = None
    tool_call_id: str | None = None
    reasoning: str | None = None

    def __post_init__(self):
        if not isinstance(self.role, str) or self.role not in ROLES:
            raise UserError(
                f"role={short(self.role)} is unknown; expected one of {', '.join(ROLES)}"
                f"{nearest(str(self.role), ROLES)}"
            )
        if isinstance(self.content, list | tuple):
            for part in self.content:
                _check_part(part)
        elif not isinstance(self.content, str) and not (self.content is None and self.tool_calls):
            raise UserError(
                f"the content of a message is {type(self.content).__name__}; expected str, or a "
                "list of parts"
            )
        for field in ("name", "tool_call_id", "reasoning"):
            value = getattr(self, field)
            if value is not None and not isinstance(value, str):
                raise UserError(f"the {field} of a message is {type(value).__name__}; expected str")
        calls = [] if self.tool_calls is None else self.tool_calls
        if not isinstance(calls, list | tuple) or not all(isinstance(c, Mapping) for c in calls):
            raise UserError("the tool_calls of a message are no list of objects; expected one")

    @property
    def text(self) -> str:
        """The content as one text.

        Raises:
          UserError: there is a picture in it.
        """
        if any(isinstance(piece, Picture) for piece in self.pieces):
            raise UserError(
                "a message holds a picture, and this chat format writes texts alone; try the chat "
                "template of a model that sees"
            )
        return "".join(map(str, self.pieces))

    @property
    def pieces(self) -> "list[str | Picture]":
        """The content as texts and pictures in their order."""
        if self.content is None or isinstance(self.content, str):
            return [self.content or ""]
        return [
            part["text"] if part["type"] == "text" else Picture(_picture(part))
            for part in self.content
        ]


def message(given: Any) -> Message:
    """A message out of a Message, or out of a dict as OpenAI's interface has it.

    Raises:
      UserError: a field that has no meaning here, or a value of the wrong type.
    """
    if isinstance(given, Message):
        return given
    if not isinstance(given, Mapping):
        raise UserError(
            f"a message is {type(given).__name__}; expected a Message, or a dict with role and "
            "content"
        )
    fields: dict[str, Any] = {}
    known = [field.name for field in dataclasses.fields(Message)]
    for key, value in given.items():
        name = SAME.get(key, key)
        if name in known:
            if fields.get(name) is None:
                fields[name] = value
        # Programs send fields that they do not use as null or empty.
        elif value is not None and value != [] and value != {}:
            raise UserError(
                f"a message has the field {str(key)[:40]!r}, which has no meaning here; expected "
                f"{', '.join(known)}{nearest(str(key), known)}"
            )
    if "role" not in fields:
        raise UserError("a message has no role; expected role and content")
    role = str(fields.pop("role"))
    return Message(SAME_ROLES.get(role, role), fields.pop("content", None), **fields)


def messages_of(given: Any) -> list[Message]:
    """A conversation out of whatever says one: a text of the user's, a message, or several.

    Raises:
      UserError: see `message`.
    """
    if isinstance(given, str):
        return [Message("user", given)]
    if isinstance(given, Mapping | Message):
        return [message(given)]
    if not isinstance(given, Sequence):
        raise UserError(
            f"messages={str(given)[:40]!r}; expected a text, a message, or a list of messages"
        )
    return [message(one) for one in given]


def check_end(messages: Sequence[Message], generation_prompt: bool) -> None:
    """Raises UserError if there is nothing to answer."""
    if all(message.role == "system" for message in messages):
        raise UserError("a conversation needs a message of the role 'user'")
    if generation_prompt and messages[-1].role == "assistant":
        raise UserError(
            "the last message is the assistant's, so there is nothing to answer; end with the role "
            "'user', or try generation_prompt=False"
        )


def check_turns(messages: Sequence[Message]) -> None:
    """Raises UserError if roles are not in turn: [system], then user and assistant alternating."""
    previous = None
    for number, role in enumerate(message.role for message in messages):
        after = {
            "system": (None,),
            "user": (None, "system", "assistant"),
            "assistant": ("user", "tool"),
            "tool": ("assistant", "tool"),
        }[role]
        if previous not in after:
            place = f"after {previous!r}" if previous else "at the beginning"
            raise UserError(
                f"message {number} is of the role {role!r} {place}; expected user and assistant "
                "in turn, after one system message at most"
            )
        previous = role


def check_plain(messages: Sequence[Message], tools: Any, format: str) -> None:
    """Raises UserError if a format that writes texts alone is to write more."""
    if tools:
        raise UserError(f"{format} writes no tools; try the model's own chat template")
    for number, message in enumerate(messages):
        for field in ("tool_calls", "reasoning"):
            if getattr(message, field):
                raise UserError(
                    f"message {number} has the field {field!r}, which {format} does not write; try "
                    "the model's own chat template"
                )


def _check_part(part: Any) -> None:
    if not isinstance(part, Mapping) or not isinstance(part.get("type"), str):
        raise UserError(
            "a part of a message's content is no object with a type; expected "
            "{'type': 'text', 'text': ...}"
        )
    if part["type"] == "image":
        unknown = [key for key in part if key not in ("type", *PICTURES)]
        if unknown or sum(part.get(key) is not None for key in PICTURES) > 1:
            raise UserError(
                f"a part of the type 'image' has the fields {', '.join(map(str, part))[:80]}; "
                "expected {'type': 'image', 'image': a picture or its path}"
            )
        return
    if part["type"] != "text":
        raise UserError(
            f"a message has a part of the type {part['type'][:40]!r}; expected parts of the types "
            "'text' and 'image'"
        )
    if not isinstance(part.get("text"), str):
        raise UserError("a part of the type 'text' has no text; expected {'type', 'text'}")


def _picture(part: Mapping[str, Any]) -> Any:
    return next((part[key] for key in PICTURES if part.get(key) is not None), None)


def pictures(messages: Sequence[Message], beside: Sequence[Any] = ()) -> list[Any]:
    """All pictures of a conversation in their order.

    Args:
      messages: the turns.
      beside: pictures of the parts that hold none themselves.

    Raises:
      UserError: more or fewer are beside the messages than they have places for.
    """
    found = [p.data for message in messages for p in message.pieces if isinstance(p, Picture)]
    open_places = sum(data is None for data in found)
    if open_places != len(beside):
        raise UserError(
            f"the messages have {open_places} parts {{'type': 'image'}} without a picture and "
            f"{len(beside)} pictures came beside them; expected as many of one as of the other"
        )
    rest = iter(beside)
    return [next(rest) if data is None else data for data in found]
