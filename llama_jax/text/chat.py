"""Conversations as token ids, in the format that a model was trained on.

A format writes control tokens by their ids and everything else by `encode`, so a user who types
`<|eot_id|>` says seven characters and does not end the turn.
"""

import dataclasses
import re
from collections.abc import Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

from llama_jax.errors import UserError, nearest
from llama_jax.messages import short
from llama_jax.text.messages import Message, Picture, check_end, check_plain, check_turns
from llama_jax.text.pretrained import Pretrained
from llama_jax.text.template import Template

IMAGE = "<|image|>"  # the control token that stands for a picture


@runtime_checkable
class Format(Protocol):
    """How a conversation is written."""

    def ids(
        self,
        messages: Sequence[Message],
        tokenizer: Pretrained,
        generation_prompt: bool,
        tools: Sequence[Mapping[str, Any]] | None = None,
    ) -> list[int]:
        """The ids of a conversation.

        Args:
          messages: the turns of the conversation.
          tokenizer: the tokenizer of the model.
          generation_prompt: whether to begin the assistant's turn.
          tools: what the assistant may call, as JSON schemas.

        Raises:
          UserError: the format cannot write them.
        """
        ...


@dataclasses.dataclass(frozen=True)
class Llama2:
    """`<s>[INST] <<SYS>>⏎system⏎<</SYS>>⏎⏎user [/INST] assistant </s>`, white space trimmed."""

    def ids(
        self,
        messages: Sequence[Message],
        tokenizer: Pretrained,
        generation_prompt: bool,
        tools: Sequence[Mapping[str, Any]] | None = None,
    ) -> list[int]:
        """The ids of a conversation."""
        bos, eos = _tokens(tokenizer, "<s>", "</s>")
        check_plain(messages, tools, "Llama 2's format")
        check_turns(messages)
        turns = [message.text for message in messages]
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
        self,
        messages: Sequence[Message],
        tokenizer: Pretrained,
        generation_prompt: bool,
        tools: Sequence[Mapping[str, Any]] | None = None,
    ) -> list[int]:
        """The ids of a conversation."""
        check_plain(messages, tools, f"the format {type(self).__name__}")
        begin, start, stop, end, end_tool = _tokens(
            tokenizer, "<|begin_of_text|>", self.start, self.stop, self.end, self.end_tool
        )

        def header(role: str) -> list[int]:
            name = "ipython" if role == "tool" else role
            return [start, *tokenizer.encode(name), stop, *tokenizer.encode("\n\n")]

        ids = [begin]
        for message in messages:
            ids += header(message.role)
            for piece in message.pieces:
                seen = isinstance(piece, Picture)
                ids += _tokens(tokenizer, IMAGE) if seen else tokenizer.encode(piece)
            ids.append(end_tool if message.role == "tool" else end)
        return ids + header("assistant") if generation_prompt else ids


@dataclasses.dataclass(frozen=True)
class Llama4(Llama3):
    """`<|header_start|>role<|header_end|>⏎⏎content<|eot|>`; a tool's result ends with `<|eom|>`."""

    start: str = "<|header_start|>"
    stop: str = "<|header_end|>"
    end: str = "<|eot|>"
    end_tool: str = "<|eom|>"


# Formats by the names that commands give them.
FORMATS: Mapping[str, Format] = {"llama2": Llama2(), "llama3": Llama3(), "llama4": Llama4()}


def chat_ids(
    messages: Sequence[Message],
    tokenizer: Pretrained,
    format: Format | str | None = None,
    generation_prompt: bool = True,
    tools: Sequence[Mapping[str, Any]] | None = None,
) -> list[int]:
    """The ids of a conversation, BOS included where the format has one.

    Args:
      messages: perhaps one of the system first, then the user's and the assistant's; whether they
        have to be in turn, the format says.
      tokenizer: the tokenizer of the model.
      format: how turns are written, or the name of that; by default the tokenizer's own template,
        else that of the model's generation.
      generation_prompt: whether to begin the assistant's turn.
      tools: what the assistant may call, as JSON schemas.

    Raises:
      UserError: roles that the format does not write, or there is no format for this tokenizer.
    """
    check_end(messages, generation_prompt)
    _check_tools(tools)
    if format is None or isinstance(format, str):
        format = format_of(tokenizer, format, tools is not None)
    if not hasattr(format, "ids"):
        raise UserError(
            f"format={short(format)}: the name of a chat format or a value such as Llama3() was "
            "expected, or None"
        )
    return format.ids(messages, tokenizer, generation_prompt, tools)


def format_of(tokenizer: Pretrained, name: str | None = None, tools: bool = False) -> Format:
    """The chat format of a tokenizer: its template, else what its control tokens tell.

    Args:
      tokenizer: the tokenizer of the model.
      name: "llama2", "llama3", "llama4", or one of the file's own templates, such as "default".
      tools: whether there are any: a template called "tool_use" is for them.

    Raises:
      UserError: there is none, or none of this name.
    """
    templates = dict(tokenizer.templates)
    if tokenizer.template is not None:
        templates["default"] = tokenizer.template
    if name is not None:
        if name in templates:
            return Template(templates[name])
        if name in FORMATS:
            return FORMATS[name]
        known = [*FORMATS, *templates]
        raise UserError(
            f"the chat format {name[:40]!r} is unknown; expected one of {', '.join(known)}"
            f"{nearest(name, known)}"
        )
    for usual in (["tool_use"] if tools else []) + ["default"]:
        if usual in templates:
            return Template(templates[usual])
    if templates:
        raise UserError(
            f"the tokenizer has several chat templates and none is the default; choose one of "
            f"{', '.join(templates)} (--chat-format NAME, format=NAME in Python)"
        )
    for format, token in ((Llama4(), "<|header_start|>"), (Llama3(), "<|start_header_id|>")):
        if token in tokenizer.control:
            return format
    raise UserError(
        "this tokenizer has no chat template, so nothing says how turns are written; choose one of "
        f"{', '.join(FORMATS)} (--chat-format NAME, format=NAME in Python) or give "
        "format=Template(...)"
    )


def _check_tools(tools: Any) -> None:
    if tools is None:
        return
    if not isinstance(tools, list | tuple) or not all(isinstance(t, Mapping) for t in tools):
        raise UserError(
            f"tools={str(tools)[:40]!r}; expected a list of JSON schemas, such as "
            '[{"type": "function", "function": {"name": ...}}]'
        )


def _tokens(tokenizer: Pretrained, *texts: str) -> list[int]:
    missing = [text for text in texts if text not in tokenizer.control]
    if missing:
        raise UserError(
            f"the tokenizer has no control token {missing[0]!r}, which this chat format needs; "
            "try the format of the model's generation"
        )
    return [tokenizer.control[text] for text in texts]
