"""Conversations as token ids, in the format that a model was trained on.

A format writes control tokens by their ids and everything else by `encode`, so a user who types
`<|eot_id|>` says seven characters and does not end the turn.
"""

import dataclasses
import re
from collections.abc import Sequence
from typing import Protocol, runtime_checkable

from llama_jax.errors import UserError
from llama_jax.text.messages import Message, check_turns
from llama_jax.text.pretrained import Pretrained
from llama_jax.text.template import Template


@runtime_checkable
class Format(Protocol):
    """How a conversation is written."""

    def ids(
        self, messages: Sequence[Message], tokenizer: Pretrained, generation_prompt: bool
    ) -> list[int]:
        """The ids of a conversation; `generation_prompt` begins the assistant's turn."""
        ...


@dataclasses.dataclass(frozen=True)
class Llama2:
    """`<s>[INST] <<SYS>>⏎system⏎<</SYS>>⏎⏎user [/INST] assistant </s>`, white space trimmed."""

    def ids(
        self, messages: Sequence[Message], tokenizer: Pretrained, generation_prompt: bool
    ) -> list[int]:
        """The ids of a conversation."""
        bos, eos = _tokens(tokenizer, "<s>", "</s>")
        turns = [message.content for message in messages]
        tags = re.compile(r"\[/?INST\]|<</?SYS>>")
        for number, (message, turn) in enumerate(zip(messages, turns, strict=True)):
            if message.role == "tool":
                raise UserError("Llama 2 knows no role 'tool'; try system, user and assistant")
            if found := tags.search(turn):
                raise UserError(
                    f"message {number} holds {found[0]!r}, which separates turns in Llama 2's "
                    "format; take it out"
                )
        if messages[0].role == "system":
            system, *turns = turns
            if turns:
                turns[0] = f"<<SYS>>\n{system}\n<</SYS>>\n\n{turns[0]}"
        ids = []
        for question, answer in zip(turns[::2], turns[1::2], strict=False):
            text = f"[INST] {question.strip()} [/INST] {answer.strip()} "
            ids += [bos, *tokenizer.encode(text), eos]
        if len(turns) % 2:
            ids += [bos, *tokenizer.encode(f"[INST] {turns[-1].strip()} [/INST]")]
        return ids


@dataclasses.dataclass(frozen=True)
class Llama3:
    """`<|start_header_id|>role<|end_header_id|>⏎⏎content<|eot_id|>`, for Llama 3 to 3.3."""

    start: str = "<|start_header_id|>"
    stop: str = "<|end_header_id|>"
    end: str = "<|eot_id|>"
    end_tool: str = "<|eot_id|>"

    def ids(
        self, messages: Sequence[Message], tokenizer: Pretrained, generation_prompt: bool
    ) -> list[int]:
        """The ids of a conversation."""
        begin, start, stop, end, end_tool = _tokens(
            tokenizer, "<|begin_of_text|>", self.start, self.stop, self.end, self.end_tool
        )

        def header(role: str) -> list[int]:
            name = "ipython" if role == "tool" else role
            return [start, *tokenizer.encode(name), stop, *tokenizer.encode("\n\n")]

        ids = [begin]
        for message in messages:
            ids += header(message.role) + tokenizer.encode(message.content)
            ids.append(end_tool if message.role == "tool" else end)
        return ids + header("assistant") if generation_prompt else ids


@dataclasses.dataclass(frozen=True)
class Llama4(Llama3):
    """`<|header_start|>role<|header_end|>⏎⏎content<|eot|>`; a tool's result ends with `<|eom|>`."""

    start: str = "<|header_start|>"
    stop: str = "<|header_end|>"
    end: str = "<|eot|>"
    end_tool: str = "<|eom|>"


def chat_ids(
    messages: Sequence[Message],
    tokenizer: Pretrained,
    format: Format | None = None,
    generation_prompt: bool = True,
) -> list[int]:
    """The ids of a conversation, BOS included where the format has one.

    Args:
      messages: perhaps one of the system first, then the user's and the assistant's in turn.
      tokenizer: the tokenizer of the model.
      format: how turns are written; by default the tokenizer's own template, else that of the
        model's generation.
      generation_prompt: whether to begin the assistant's turn.

    Raises:
      UserError: roles are not in turn, or there is no format for this tokenizer.
    """
    check_turns(messages, generation_prompt)
    return (format or format_of(tokenizer)).ids(messages, tokenizer, generation_prompt)


def format_of(tokenizer: Pretrained) -> Format:
    """The chat format of a tokenizer: its template, else what its control tokens tell.

    Raises:
      UserError: neither tells one.
    """
    if tokenizer.template is not None:
        return Template(tokenizer.template)
    for format, token in ((Llama4(), "<|header_start|>"), (Llama3(), "<|start_header_id|>")):
        if token in tokenizer.control:
            return format
    if {"<s>", "</s>"} <= tokenizer.control.keys():
        return Llama2()
    raise UserError(
        "this tokenizer has neither a chat template nor the control tokens of a Llama; expected "
        "one of a chat model; try format=Template(...)"
    )


def _tokens(tokenizer: Pretrained, *texts: str) -> list[int]:
    missing = [text for text in texts if text not in tokenizer.control]
    if missing:
        raise UserError(
            f"the tokenizer has no control token {missing[0]!r}, which this chat format needs; "
            "try the format of the model's generation"
        )
    return [tokenizer.control[text] for text in texts]
