"""The turns of a conversation, whatever format they are written in."""

import dataclasses
from collections.abc import Sequence

from llama_jax.errors import UserError, nearest

ROLES = ("system", "user", "assistant", "tool")


@dataclasses.dataclass(frozen=True)
class Message:
    """One turn of a conversation.

    Attributes:
      role: "system" (first or not at all), "user", "assistant", or "tool" for what a tool gave.
      content: plain text; names of control tokens in it are text too.
    """

    role: str
    content: str

    def __post_init__(self):
        if self.role not in ROLES:
            raise UserError(
                f"role={self.role!r} is unknown; expected one of {', '.join(ROLES)}"
                f"{nearest(str(self.role), ROLES)}"
            )
        if not isinstance(self.content, str):
            raise UserError(
                f"the content of a message is {type(self.content).__name__}; expected str"
            )


def check_turns(messages: Sequence[Message], generation_prompt: bool) -> None:
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
    if previous in (None, "system"):
        raise UserError("a conversation needs a message of the role 'user'")
    if generation_prompt and previous == "assistant":
        raise UserError(
            "the last message is the assistant's, so there is nothing to answer; end with the role "
            "'user', or try generation_prompt=False"
        )
